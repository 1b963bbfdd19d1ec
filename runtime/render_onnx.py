"""render.onnx: the graph that draws a scene at a time, to be built into a TensorRT engine.

    means, quats               → motion → ┐
    scales, opacities, colors  →          ├ GaussianRasterize → image, alpha, depth, stats
    viewmats, Ks, background   →          ┘

A graph is made for a number of Gaussians, a size of picture, and what else an engine has to know when it is built
(`RenderSpec`); the scene is its input. Gaussians come activated: motion, none or one polynomial, acts after that, so
scenes of every activation can be drawn. All is float32, since TensorRT 8.6 has no float64: that knows an angle of 100
rad to 4e-6, which is 40 um at 10 m.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels.ops import ALPHA, DEPTH, DOMAIN, GAUSSIAN_RASTERIZE, IMAGE, PLUGIN_ATTRIBUTES, VERSION
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest
from edge4d.runtime.motion import Poly
from edge4d.runtime.onnx_files import IR_VERSION, OPSET
from edge4d.runtime.rotations import left_multiplications
from edge4d.runtime.scene import Scene4D

Arrays = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype by name


class RenderSpec(NamedTuple):
    """What a graph is made for.

    Attributes:
        gaussians: N; a scene may have fewer.
        width, height: of the picture, in pixels.
        max_pairs: Gaussian-tile pairs that there is room for, above 0.
        groups: M, of the polynomial motion.
        linear_terms, angular_terms: P and Q, how many coefficients shift and turn a group; 0 and 0 stands still.
        outputs: sum of 1 image, 2 alpha, 4 depth. The stats always come.
        dtype: of the image: "float32", "float16" or "uint8"; of alpha and depth too, which are float32 beside "uint8".
        eps2d, antialiased, sh_degree: attributes of GaussianRasterize.
    """

    gaussians: int
    width: int
    height: int
    max_pairs: int
    groups: int = 0
    linear_terms: int = 0
    angular_terms: int = 0
    outputs: int = IMAGE | ALPHA | DEPTH
    dtype: str = "float32"
    eps2d: float = 0.3
    antialiased: bool = False
    sh_degree: int = -1

    @property
    def drawn_dtype(self) -> str:
        """What GaussianRasterize gives: a plugin cannot give uint8, so the graph makes that of float32."""
        return "float32" if self.dtype == "uint8" else self.dtype

    def inputs(self) -> Arrays:
        """Of the graph, world lengths in metres and `time` in seconds; only those that the motion needs."""
        N, M, P, Q = self.gaussians, self.groups, self.linear_terms, self.angular_terms
        shapes: dict[str, tuple[int, ...]] = {
            "means": (N, 3),
            "quats": (N, 4),
            "scales": (N, 3),
            "opacities": (N,),
            "colors": (N, 3) if self.sh_degree < 0 else (N, (self.sh_degree + 1) ** 2, 3),
        }
        if P or Q:
            shapes["groups"] = (N,)
        if Q:
            shapes.update(centres=(M, 3), angular=(M, Q, 3))
        if P:
            shapes["linear"] = (M, P, 3)
        if P or Q:
            shapes["time"] = (1,)
        shapes.update(viewmats=(1, 1, 4, 4), Ks=(1, 1, 3, 3), background=(3,))
        return {name: (shape, "int32" if name == "groups" else "float32") for name, shape in shapes.items()}

    def results(self) -> Arrays:
        """The outputs that are asked for."""
        pixels, plane = (1, 1, self.height, self.width), self.drawn_dtype
        arrays: Arrays = {
            "image": ((*pixels, 3), self.dtype),
            "alpha": ((*pixels, 1), plane),
            "depth": ((*pixels, 1), plane),
        }
        asked = {name: array for bit, (name, array) in enumerate(arrays.items()) if self.outputs >> bit & 1}
        return {**asked, "stats": ((1, 1, 5), "int32")}


# ---- scenes ---------------------------------------------------------------------------------------------------------


def polynomial_of(scene: Scene4D) -> Optional[Poly]:
    """The motion of a scene; None of one that stands still.

    Raises:
        InvalidRequest: it is another than one polynomial.
    """
    if not scene.motion:
        return None
    term = scene.motion[0]
    if len(scene.motion) == 1 and isinstance(term, Poly):
        return term
    raise InvalidRequest(
        "A TensorRT engine cannot draw how this scene moves.",
        note=f"Its motion is {', '.join(term.kind for term in scene.motion)}; possible is none, or one {Poly.kind}.",
        hint='Draw it by the CUDA kernels, without an engine: backend="cuda".',
    )


def spec_of(scene: Scene4D, *, gaussians: int, size: tuple[int, int], max_pairs: int, **others: Any) -> RenderSpec:
    """What a graph for a scene is made for.

    Args:
        gaussians: N, as many as the scene has or more.
        size: (width, height).
        others: outputs, dtype.

    Raises:
        InvalidRequest: the scene moves in another way than by one polynomial.
    """
    poly = polynomial_of(scene)
    M, P, Q = (len(poly.centres), poly.linear.shape[1], poly.angular.shape[1]) if poly else (0, 0, 0)
    return RenderSpec(
        gaussians,
        *size,
        max_pairs,
        groups=M,
        linear_terms=P,
        angular_terms=Q,
        eps2d=scene.eps2d,
        antialiased=scene.antialiased,
        sh_degree=scene.sh_degree,
        **others,
    )


def scene_inputs(scene: Scene4D, spec: RenderSpec, background: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The inputs that are the same for all frames, with Gaussians that nobody sees in the place of those that lack.

    Args:
        background: [3] RGB.

    Raises:
        InvalidRequest: the scene moves in another way than by one polynomial.
    """
    poly = polynomial_of(scene)
    found: dict[str, NDArray[Any]] = {
        **scene.without_motion().evaluate(0.0)._asdict(),
        **(poly.tensors() if poly else {}),
        "groups": scene.groups,
        "background": background,
    }
    return {name: _filled(name, found[name], shape) for name, (shape, _) in spec.inputs().items() if name in found}


def _filled(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array with rows up to `shape`: what has opacity 0 is not drawn, but a rotation of zeros would be counted."""
    rows = np.full((shape[0] - len(array), *shape[1:]), 1 if name == "quats" else 0, array.dtype)
    return np.concatenate([array, rows])


# ---- the graph ------------------------------------------------------------------------------------------------------


def render_onnx(spec: RenderSpec) -> bytes:
    """The graph as an ONNX file, the same bytes for the same `spec`.

    Raises:
        BackendUnavailable: onnx is not installed.
    """
    graph = _Graph(check_onnx())
    _rasterize(graph, spec, *_moved(graph, spec))
    return graph.file(spec.inputs(), spec.results())


def check_onnx() -> Any:
    """The module onnx. Raises BackendUnavailable where it is not installed."""
    try:
        return import_module("onnx")
    except ImportError as error:
        raise BackendUnavailable(
            "The graph that draws is written by onnx, which is not installed.",
            note=f"{error}.",
            hint="pip install 'edge4d[tensorrt]'",
        ) from error


class _Graph:
    """Nodes in the order in which they run."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inner: list[Any] = []

    def __call__(self, operator: str, *inputs: Union[str, NDArray[Any]], output: str = "", **attributes: Any) -> str:
        """Adds a node, whose inputs are names of values, or constants; returns the name of its output."""
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        output = output or f"{operator}.{len(self._nodes)}"
        make = self._onnx.helper.make_node
        self._nodes.append(make(operator, names, [output], name=f"render/{output}", **attributes))
        return output

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"constant.{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def add_ours(self, operator: str, inputs: list[str], outputs: Arrays, attributes: dict[str, Any]) -> None:
        """Adds a node of our domain. The types of its outputs are written down: only we can infer them."""
        helper = self._onnx.helper
        node = helper.make_node(operator, inputs, list(outputs), name=f"render/{operator}", domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(*item) for item in {**attributes, **PLUGIN_ATTRIBUTES}.items())
        self._nodes.append(node)
        self._inner += self._values(outputs)

    def file(self, inputs: Arrays, outputs: Arrays) -> bytes:
        helper = self._onnx.helper
        inner = [value for value in self._inner if value.name not in outputs]
        graph = helper.make_graph(
            self._nodes, "render", self._values(inputs), self._values(outputs), self._constants, value_info=inner
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=DOMAIN)
        return bytes(model.SerializeToString(deterministic=True))

    def number_of(self, dtype: str) -> int:
        """ONNX's number of a dtype."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _values(self, arrays: Arrays) -> list[Any]:
        make = self._onnx.helper.make_tensor_value_info
        return [make(name, self.number_of(dtype), shape) for name, (shape, dtype) in arrays.items()]


def _axes(*axes: int) -> NDArray[np.int64]:
    return np.array(axes, np.int64)


# ---- motion: Poly.apply, for the groups first and then for the Gaussians of each ------------------------------------

_LEFT = left_multiplications(np.eye(4))  # [4, 4, 4]: q times p is q_i L_ij p
_CROSS = _LEFT[1:, 1:, 1:]  # [3, 3, 3]: u cross v is u_i C_ij v
_ROTATION = np.zeros((4, 4, 3, 3))  # of a unit quaternion q = (w, u): R - 1 = 2 (w C(u) + C(u) C(u)) = q_i q_j R_ij
_ROTATION[0, 1:] = 2 * _CROSS
_ROTATION[1:, 1:] = 2 * np.einsum("iab,jbc->ijac", _CROSS, _CROSS)

_TINY = np.float32(1e-30)  # rad; the angle of what does not turn is divided by it instead


def _moved(graph: _Graph, spec: RenderSpec) -> tuple[str, str]:
    """Means [N, 3] and quats [N, 4] at `time`: mu + (R - 1)(mu - c) + shift, and quat(theta) times q.

    R - 1 instead of R: what does not turn is where it was to the last bit, as is everything at time 0.
    """
    means, quats, M = "means", "quats", spec.groups
    if spec.angular_terms:
        turn = _quat(graph, _polynomial(graph, "angular", M, spec.angular_terms))
        column, row = (graph("Reshape", turn, _axes(M, *shape)) for shape in ((4, 1), (1, 4)))
        square = graph("Reshape", graph("Mul", column, row), _axes(M, 16, 1))
        rotation, product = _contracted(graph, square, _ROTATION, M, 3), _contracted(graph, column, _LEFT, M, 4)
        arm = graph("Sub", "means", graph("Gather", "centres", "groups"))
        means = graph("Add", means, _applied(graph, rotation, arm))
        quats = _applied(graph, product, "quats")
    if spec.linear_terms:
        shift = _polynomial(graph, "linear", M, spec.linear_terms)
        means = graph("Add", means, graph("Gather", shift, "groups"))
    return means, quats


def _polynomial(graph: _Graph, coefficients: str, groups: int, terms: int) -> str:
    """sum_i coefficients[:, i] time^(i+1) [M, 3]; 0 for group 0, which stands still."""
    # Time to the i+1 as a product: TensorRT's power of a negative number may be NaN.
    lower = np.tri(terms, dtype=np.float32)
    factors = graph("Add", graph("Mul", "time", lower), 1 - lower)
    powers = graph("ReduceProd", factors, axes=[1], keepdims=1)
    total = graph("ReduceSum", graph("Mul", coefficients, powers), _axes(1), keepdims=0)
    return graph("Mul", total, (np.arange(groups) > 0).astype(np.float32)[:, None])


def _quat(graph: _Graph, theta: str) -> str:
    """Unit quaternions [M, 4] that turn by |theta| radians about theta [M, 3]."""
    angle = graph("Sqrt", graph("ReduceSum", graph("Mul", theta, theta), _axes(1), keepdims=1))
    half = graph("Mul", angle, np.float32(0.5))
    along = graph("Div", graph("Sin", half), graph("Max", angle, _TINY))
    return graph("Concat", graph("Cos", half), graph("Mul", along, theta), axis=1)


def _contracted(graph: _Graph, values: str, table: NDArray[np.float64], groups: int, size: int) -> str:
    """sum_i values[:, i] table[i], [M, size, size]: not as a matrix product, which might be rounded to TF32."""
    flat = table.reshape(-1, size * size).astype(np.float32)
    total = graph("ReduceSum", graph("Mul", values, flat), _axes(1), keepdims=0)
    return graph("Reshape", total, _axes(groups, size, size))


def _applied(graph: _Graph, matrices: str, vectors: str) -> str:
    """The matrices [M, n, n] of their groups times the vectors [N, n]."""
    products = graph("Mul", graph("Gather", matrices, "groups"), graph("Unsqueeze", vectors, _axes(1)))
    return graph("ReduceSum", products, _axes(2), keepdims=0)


# ---- drawing --------------------------------------------------------------------------------------------------------


def _rasterize(graph: _Graph, spec: RenderSpec, means: str, quats: str) -> None:
    gaussians = (means, quats, "scales", "opacities", "colors")
    inputs = [*(graph("Unsqueeze", name, _axes(0)) for name in gaussians), "viewmats", "Ks", "background"]
    given = {
        "width": spec.width,
        "height": spec.height,
        "eps2d": float(spec.eps2d),
        "antialiased": int(spec.antialiased),
        "sh_degree": spec.sh_degree,
        "max_pairs": spec.max_pairs,
        "outputs": spec.outputs,
        "out_dtype": spec.drawn_dtype,
    }
    defaults: dict[str, Any] = {attribute.name: attribute.default for attribute in GAUSSIAN_RASTERIZE.attributes}
    attributes = {**defaults, **given}
    asked, nothing = spec._replace(dtype=spec.drawn_dtype).results(), ((0,), spec.drawn_dtype)
    drawn = {tensor.name: asked.get(tensor.name, nothing) for tensor in GAUSSIAN_RASTERIZE.outputs}
    if spec.dtype != "uint8" or "image" not in asked:
        graph.add_ours(GAUSSIAN_RASTERIZE.name, inputs, drawn, attributes)
        return
    floats = "image.float32"
    graph.add_ours(GAUSSIAN_RASTERIZE.name, inputs, {floats: drawn.pop("image"), **drawn}, attributes)
    levels = graph("Mul", graph("Clip", floats, np.float32(0), np.float32(1)), np.float32(255))
    graph("Cast", graph("Floor", graph("Add", levels, np.float32(0.5))), output="image", to=graph.number_of("uint8"))
