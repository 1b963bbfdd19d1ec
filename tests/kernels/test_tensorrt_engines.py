"""Engines of one operator each, built and run by TensorRT with the plugins, against the CPU kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_scenes import HEIGHT, NAMES, WIDTH, draw_cpu, halved, psnr, random_scene
from voxel_scenes import STORED, assert_near, convolution, qkv_of, sphere

from edge4d.kernels import cpu
from edge4d.kernels.ops import (
    DOMAIN,
    FARTHEST_POINT_SAMPLE,
    GATHER_MEAN,
    GAUSSIAN_RASTERIZE,
    KNN_INTERPOLATE,
    PLUGIN_ATTRIBUTES,
    SUBMANIFOLD_CONVOLUTION,
    VERSION,
    VOXEL_NEIGHBOURS,
    WINDOW_ATTENTION,
    Operator,
)
from edge4d.runtime import voxels
from edge4d.runtime.backends.cuda import DeviceArray, Graph, Stream
from edge4d.runtime.bundle_engines import plugin_library
from edge4d.runtime.engine_from_onnx import BuildRequest, engine_from_onnx, library_version

pytestmark = pytest.mark.gpu
pytest.importorskip("tensorrt")
onnx = pytest.importorskip("onnx")

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def plugins() -> Path:
    library = plugin_library(library_version("tensorrt"))
    if not library.is_file():
        pytest.skip("the TensorRT plugins were not built")
    return library


class Node:
    """An operator as an engine: built from an ONNX file that holds nothing else, for the shapes of `inputs`."""

    def __init__(
        self,
        operator: Operator,
        plugins: Path,
        folder: Path,
        inputs: Arrays,
        outputs: Arrays,
        attributes: dict[str, Any],
    ) -> None:
        from edge4d.runtime.backends.tensorrt import Scratch, TensorRt, load_plugins

        path = folder / "node.onnx"
        onnx.save(model_of(operator, inputs, outputs, attributes), path)
        precision = (
            "fp16" if any(array.dtype == np.float16 for array in (*inputs.values(), *outputs.values())) else "fp32"
        )
        data = engine_from_onnx(BuildRequest(path, "tensorrt", precision, {}, plugins=plugins))
        load_plugins(plugins)
        self.stream, self._scratch = Stream(), Scratch()
        self._engine = TensorRt().load(data)
        self._inputs = {name: DeviceArray.from_numpy(array) for name, array in inputs.items()}
        self._outputs = {
            name: DeviceArray(self._engine.shape(name), self._engine.dtypes[name]) for name in self._engine.outputs
        }
        for name, array in {**self._inputs, **self._outputs}.items():
            self._engine.bind(name, array)

    def enqueue(self) -> None:
        self._engine.enqueue(self.stream, self._scratch)

    def poison(self) -> None:
        for array in self._outputs.values():
            array.fill_bytes(0xA5, self.stream)

    def results(self) -> Arrays:
        self.stream.synchronize()
        return {name: array.to_numpy() for name, array in self._outputs.items()}

    def run(self) -> Arrays:
        self.poison()
        self.enqueue()
        return self.results()


def model_of(operator: Operator, inputs: Arrays, outputs: Arrays, attributes: dict[str, Any]) -> Any:
    every = {attribute.name: attribute.default for attribute in operator.attributes} | attributes
    node = onnx.helper.make_node(
        operator.name,
        list(inputs),
        list(outputs),
        domain=DOMAIN,
        **PLUGIN_ATTRIBUTES,
    )
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in every.items())
    values = [
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        for arrays in (inputs, outputs)
    ]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "node", *values), opset_imports=opsets, ir_version=8)


def drawn(plugins: Path, folder: Path, scene: Arrays, **attributes: Any) -> tuple[Node, Arrays]:
    """The node and, as the CPU draws it, what it shall give."""
    expected = draw_cpu(scene, **{name: value for name, value in attributes.items() if name != "max_pairs"})._asdict()
    size = {"width": WIDTH, "height": HEIGHT}
    node = Node(
        GAUSSIAN_RASTERIZE, plugins, folder, {name: scene[name] for name in NAMES}, expected, {**size, **attributes}
    )
    return node, expected


@pytest.mark.parametrize(
    ("scene", "attributes"),
    [
        (random_scene(1), {}),
        (random_scene(2, batch=2, cameras=2, sh_degree=2), {"sh_degree": 2, "antialiased": 1}),
        (halved(random_scene(3)), {"out_dtype": "float16"}),
    ],
    ids=["float32", "harmonics, several images", "float16"],
)
def test_rasterize(plugins: Path, tmp_path: Path, scene: Arrays, attributes: dict[str, Any]) -> None:
    node, expected = drawn(plugins, tmp_path, scene, max_pairs=20_000, **attributes)
    found = node.run()
    # The kernels' own bar is 60 dB in float32 (CONVENTIONS.md); an image of float16 has 11 bits: 6 dB each, and some.
    least = 60 if expected["image"].dtype == np.float32 else 55
    assert psnr(found["image"].astype(np.float32), expected["image"].astype(np.float32)) > least
    assert psnr(found["alpha"].astype(np.float32), expected["alpha"].astype(np.float32)) > least
    np.testing.assert_array_equal(found["stats"][..., :2], expected["stats"][..., :2])
    assert not found["stats"][..., 4].any()


def test_outputs_that_are_not_asked_for(plugins: Path, tmp_path: Path) -> None:
    node, expected = drawn(plugins, tmp_path, random_scene(4), max_pairs=20_000, outputs=1)
    found = node.run()
    assert found["alpha"].size == found["depth"].size == 0
    assert psnr(found["image"], expected["image"]) > 60


def test_overflow_is_said(plugins: Path, tmp_path: Path) -> None:
    node, _ = drawn(plugins, tmp_path, random_scene(5), max_pairs=10)
    found = node.run()
    assert (found["stats"][0, 0, 3:] == [10, 1]).all()
    np.testing.assert_array_equal(found["image"], np.broadcast_to(np.float32([0.1, 0.2, 0.3]), found["image"].shape))


def test_a_graph_of_an_engine_draws_the_same(plugins: Path, tmp_path: Path) -> None:
    node, _ = drawn(plugins, tmp_path, random_scene(6), max_pairs=20_000)
    expected = node.run()
    with Graph(node.stream) as graph:
        node.enqueue()
    node.poison()
    graph.launch()
    for name, array in node.results().items():
        np.testing.assert_array_equal(array, expected[name])


def test_knn_interpolate(plugins: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    inputs = {name: rng.normal(size=size).astype(np.float32) for name, size in
              (("queries", (2000, 3)), ("points", (300, 3)), ("values", (4, 300, 5)))}  # fmt: skip
    expected = cpu.knn_interpolate(*inputs.values(), k=6)._asdict()
    outputs = {f"{name}_out" if name in inputs else name: array for name, array in expected.items()}
    found = Node(KNN_INTERPOLATE, plugins, tmp_path, inputs, outputs, {"k": 6}).run()
    np.testing.assert_array_equal(found["indices"], expected["indices"])
    # Sums of six products of numbers near 1, in another order.
    np.testing.assert_allclose(found["values_out"], expected["values"], rtol=1e-5, atol=1e-5)


def test_farthest_point_sample(plugins: Path, tmp_path: Path) -> None:
    points = np.random.default_rng(8).normal(size=(5000, 3)).astype(np.float32)
    expected = cpu.farthest_point_sample(points, count=128)
    found = Node(
        FARTHEST_POINT_SAMPLE, plugins, tmp_path, {"points": points}, {"indices": expected}, {"count": 128}
    ).run()
    np.testing.assert_array_equal(found["indices"], expected)


def test_voxel_neighbours(plugins: Path, tmp_path: Path) -> None:
    inputs = {"coords": sphere(32)}
    expected = cpu.voxel_neighbours(inputs["coords"], resolution=32)
    found = Node(VOXEL_NEIGHBOURS, plugins, tmp_path, inputs, {"neighbours": expected}, {"resolution": 32}).run()
    np.testing.assert_array_equal(found["neighbours"], expected)


@pytest.mark.parametrize("dtype", STORED)
def test_submanifold_convolution(plugins: Path, tmp_path: Path, dtype: str) -> None:
    inputs = convolution(9, voxels.neighbours(sphere(24), 24), 64, 96, dtype)
    expected = cpu.submanifold_convolution(*inputs)
    outputs = {"convolved": expected}
    found = Node(SUBMANIFOLD_CONVOLUTION, plugins, tmp_path, inputs._asdict(), outputs, {}).run()
    assert_near(found["convolved"], expected, 27 * 64)


@pytest.mark.parametrize("dtype", STORED)
def test_gather_mean(plugins: Path, tmp_path: Path, dtype: str) -> None:
    coarse = voxels.coarse(sphere(24), 24)
    features = np.random.default_rng(10).normal(size=(len(coarse.parents), 40)).astype(dtype)
    expected = cpu.gather_mean(features, coarse.children, zeros=1)
    inputs = {"features": features, "table": coarse.children}
    found = Node(GATHER_MEAN, plugins, tmp_path, inputs, {"means": expected}, {"zeros": 1}).run()
    assert_near(found["means"], expected, 8)


@pytest.mark.parametrize("dtype", STORED)
def test_window_attention(plugins: Path, tmp_path: Path, dtype: str) -> None:
    inputs = {"qkv": qkv_of(11, len(sphere(24)), 3, 64, dtype), "windows": voxels.windows(sphere(24), 8)}
    expected = cpu.window_attention(**inputs)
    found = Node(WINDOW_ATTENTION, plugins, tmp_path, inputs, {"attended": expected}, {}).run()
    assert_near(found["attended"], expected, 64 + inputs["windows"].shape[1])
