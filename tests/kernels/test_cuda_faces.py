"""What the faces of the CUDA operators refuse. No GPU is touched: the arrays only claim to be somewhere."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge4d.kernels import _library, cuda
from edge4d.kernels.cuda import DeltaTerm, PolyTerm, StoredGaussians
from edge4d.kernels.reference import KnnInterpolation, Rasterization
from edge4d.runtime.errors import InvalidRequest, InvalidTensor, LibraryNotFound

ADDRESS = 0x7F00_0000_0000


class Claimed:
    """An array that says it lies in GPU memory."""

    def __init__(self, *shape: int, dtype: str = "float32", address: int = ADDRESS, read_only=False, strides=None):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, read_only),
            "strides": strides,
            "version": 3,
        }


@pytest.fixture(autouse=True)
def library(tmp_path, monkeypatch):
    """No library: a call that gets as far as to look for it has passed every check."""
    monkeypatch.setenv("EDGE4D_LIBRARY", str(tmp_path))
    _library.load_cuda.cache_clear()
    yield
    _library.load_cuda.cache_clear()


def rasterize(**changes: Any) -> None:
    B, V, N, H, W = 2, 3, 10, 32, 64
    arrays = {
        "means": Claimed(B, N, 3),
        "quats": Claimed(B, N, 4),
        "scales": Claimed(B, N, 3),
        "opacities": Claimed(B, N),
        "colors": Claimed(B, N, 3),
        "viewmats": Claimed(B, V, 4, 4),
        "Ks": Claimed(B, V, 3, 3),
        "background": Claimed(3),
    }
    out = {
        "image": Claimed(B, V, H, W, 3),
        "alpha": Claimed(B, V, H, W, 1),
        "depth": Claimed(B, V, H, W, 1),
        "stats": Claimed(B, V, 5, dtype="int32"),
    }
    options = {"workspace": Claimed(1 << 20, dtype="uint8"), "width": W, "height": H, "max_pairs": 100}
    for name, value in changes.items():
        next((group for group in (arrays, out) if name in group), options)[name] = value
    cuda.gaussian_rasterize(*arrays.values(), out=Rasterization(**out), **options)


def knn(**changes: Any) -> None:
    arguments = {
        "queries": Claimed(5, 3),
        "points": Claimed(9, 3),
        "values": Claimed(2, 9, 3),
        "out": KnnInterpolation(Claimed(2, 5, 3), Claimed(5, 4, dtype="int32"), Claimed(5, 4)),
        "workspace": Claimed(256, dtype="uint8"),
        "k": 4,
    }
    cuda.knn_interpolate(**{**arguments, **changes})


def fps(**changes: Any) -> None:
    arguments = {
        "points": Claimed(9, 3),
        "count": 4,
        "out": Claimed(4, dtype="int32"),
        "workspace": Claimed(256, dtype="uint8"),
    }
    cuda.farthest_point_sample(**{**arguments, **changes})


def neighbours(**changes: Any) -> None:
    arguments = {
        "coords": Claimed(9, 3, dtype="int32"),
        "resolution": 16,
        "out": Claimed(9, 27, dtype="int32"),
        "workspace": Claimed(1 << 16, dtype="uint8"),
    }
    cuda.voxel_neighbours(**{**arguments, **changes})


def convolve(**changes: Any) -> None:
    arguments = {
        "features": Claimed(9, 4),
        "neighbours": Claimed(9, 27, dtype="int32"),
        "weight": Claimed(27, 4, 6),
        "bias": Claimed(6),
        "out": Claimed(9, 6),
    }
    cuda.submanifold_convolution(**{**arguments, **changes})


def mean(**changes: Any) -> None:
    arguments = {"features": Claimed(9, 4), "table": Claimed(5, 8, dtype="int32"), "out": Claimed(5, 4)}
    cuda.gather_mean(**{**arguments, **changes})


def attend(**changes: Any) -> None:
    arguments = {"qkv": Claimed(9, 3, 2, 8), "windows": Claimed(5, 4, dtype="int32"), "out": Claimed(9, 2, 8)}
    cuda.window_attention(**{**arguments, **changes})


def halved(*shape: int) -> Claimed:
    return Claimed(*shape, dtype="float16")


def move(**changes: Any) -> None:
    stored = StoredGaussians(Claimed(7, 3), Claimed(7, 4), Claimed(7, 3), Claimed(7), Claimed(7, 4, 3))
    options = {
        "stored": stored,
        "out": stored,
        "time": Claimed(1, dtype="float64"),
        "groups": Claimed(7, dtype="int32"),
        "terms": [PolyTerm(Claimed(4, 3), Claimed(4, 2, 3), Claimed(4, 0, 3)), DELTA],
        **changes,
    }
    cuda.move_gaussians(**options)


DELTA = DeltaTerm(Claimed(3, dtype="float64"), Claimed(3, 7, 5, dtype="float16"), {"means": 0})
CALLS = [rasterize, knn, fps, neighbours, convolve, mean, attend, move]


@pytest.mark.parametrize("call", CALLS)
def test_right_calls_get_as_far_as_the_library(call: Callable[..., None]) -> None:
    with pytest.raises(LibraryNotFound, match="CUDA kernels"):
        call()


RIGHT: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (rasterize, {"sh_degree": 1, "colors": Claimed(2, 10, 4, 3)}),
    (rasterize, {"out_dtype": "uint8", "image": Claimed(2, 3, 32, 64, 3, dtype="uint8")}),
    (rasterize, {"outputs": 1, "alpha": None, "depth": None}),
    (rasterize, {"stream": np.int64(7)}),
    (rasterize, {"means": Claimed(2, 10, 3, strides=(120, 12, 4))}),
    (move, {"groups": None, "terms": (), "out": StoredGaussians(means=Claimed(7, 3, dtype="float16"))}),
    (move, {"stored": StoredGaussians(colors=Claimed(7, 3)), "out": StoredGaussians(colors=Claimed(7, 3))}),
    (move, {"terms": [DELTA._replace(data=Claimed(3, 2, 5), row_of=Claimed(7, dtype="int32"))]}),
    (move, {"terms": [DELTA] * 4}),
    (
        convolve,
        {
            name: halved(*size)
            for name, size in (("features", (9, 4)), ("weight", (27, 4, 6)), ("bias", (6,)), ("out", (9, 6)))
        },
    ),
    (mean, {"features": halved(9, 4), "out": halved(5, 4), "zeros": 1}),
    (attend, {"qkv": halved(9, 3, 2, 8), "out": halved(9, 2, 8)}),
]


@pytest.mark.parametrize(("call", "changes"), RIGHT)
def test_variants_that_are_right(call, changes) -> None:
    with pytest.raises(LibraryNotFound):
        call(**changes)


WRONG: list[tuple[Callable[..., None], dict[str, Any], str]] = [
    # where they lie
    (rasterize, {"means": np.zeros((2, 10, 3), np.float32)}, r"'means' is not in GPU memory.*ndarray"),
    (rasterize, {"viewmats": [1, 2]}, "'viewmats' is not in GPU memory"),
    (rasterize, {"alpha": None}, r"'out\.alpha' is not in GPU memory"),
    (rasterize, {"workspace": None}, "'workspace' is not in GPU memory"),
    (rasterize, {"scales": Claimed(2, 10, 3, address=ADDRESS + 4)}, "'scales' begins at.*4 bytes beyond"),
    (rasterize, {"workspace": Claimed(9, address=ADDRESS + 64)}, "'workspace' begins at.*64 bytes beyond"),
    (rasterize, {"quats": Claimed(2, 10, 4, strides=(160, 4, 40))}, "'quats' is not dense"),
    (rasterize, {"image": Claimed(2, 3, 32, 64, 3, read_only=True)}, r"'out\.image' is read-only"),
    # what they are
    (rasterize, {"means": Claimed(2, 10, 4)}, r"'means' has the wrong shape.*\[2, 10, 4\]"),
    (rasterize, {"quats": Claimed(2, 11, 4)}, "'quats' has the wrong shape"),
    (rasterize, {"scales": Claimed(2, 10, 3, dtype="float16")}, r"(?s)'scales' has the wrong dtype.*float16.*float32"),
    (rasterize, {"means": Claimed(2, 10, 3, dtype="float64")}, "'means' has the wrong dtype"),
    (rasterize, {"Ks": Claimed(2, 3, 3, 3, dtype="float64")}, "'Ks' has the wrong dtype"),
    (rasterize, {"background": Claimed(4)}, "'background' has the wrong shape"),
    (rasterize, {"image": Claimed(2, 3, 64, 32, 3)}, r"'out\.image' has the wrong shape"),
    (rasterize, {"image": Claimed(2, 3, 32, 64, 3, dtype="uint8")}, r"'out\.image' has the wrong dtype"),
    (rasterize, {"out_dtype": "uint8"}, r"'out\.image' has the wrong dtype"),
    (rasterize, {"stats": Claimed(2, 3, 5)}, r"'out\.stats' has the wrong dtype"),
    (rasterize, {"sh_degree": 1, "colors": Claimed(2, 10, 3, 3)}, "too few coefficients"),
    (knn, {"values": Claimed(2, 8, 3)}, "'values' has the wrong shape"),
    (knn, {"points": Claimed(3, 3), "values": Claimed(2, 3, 3)}, "fewer points than neighbours"),
    (knn, {"out": KnnInterpolation(Claimed(2, 5, 3), Claimed(5, 4), Claimed(5, 4))}, r"'out\.indices' has the wrong"),
    (fps, {"out": Claimed(5, dtype="int32")}, "'out' has the wrong shape"),
    (neighbours, {"coords": Claimed(9, 3)}, "'coords' has the wrong dtype"),
    (neighbours, {"out": Claimed(9, 26, dtype="int32")}, r"'out' has the wrong shape.*\[9, 27\]"),
    (convolve, {"neighbours": Claimed(8, 27, dtype="int32")}, "'neighbours' has the wrong shape"),
    (convolve, {"weight": Claimed(27, 6, 4)}, "'weight' has the wrong shape"),
    (convolve, {"bias": halved(6)}, "'bias' has the wrong dtype"),
    (convolve, {"features": Claimed(9, 0), "weight": Claimed(27, 0, 6)}, "'weight' has no channels"),
    (convolve, {"out": Claimed(9, 6, read_only=True)}, "'out' is read-only"),
    (mean, {"table": Claimed(5, 8)}, "'table' has the wrong dtype"),
    (mean, {"out": Claimed(9, 4)}, "'out' has the wrong shape"),
    (attend, {"qkv": Claimed(9, 2, 2, 8)}, "'qkv' has the wrong shape"),
    (attend, {"qkv": Claimed(9, 3, 1, 129), "out": Claimed(9, 1, 129)}, "D is 129; allowed: 1 to 128"),
    (attend, {"out": halved(9, 2, 8)}, "'out' has the wrong dtype"),
    (move, {"time": Claimed(1)}, "'time' has the wrong dtype"),
    (move, {"groups": Claimed(8, dtype="int32")}, "'groups' has the wrong shape"),
    (move, {"stored": StoredGaussians(), "out": StoredGaussians(means=Claimed(7, 3))}, "no means to move"),
    (
        move,
        {"out": StoredGaussians(Claimed(7, 3), Claimed(7, 4, dtype="float16"))},
        r"'out\.quats' has the wrong dtype",
    ),
    (move, {"terms": [DELTA._replace(data=Claimed(3, 6, 5))]}, "'data' has the wrong shape"),
    (move, {"terms": [PolyTerm(Claimed(4, 3), Claimed(5, 2, 3), Claimed(4, 0, 3))]}, "'linear' has the wrong shape"),
]

IMPOSSIBLE: list[tuple[Callable[..., None], dict[str, Any], str]] = [
    (rasterize, {"max_pairs": 0}, "max_pairs is 0"),
    (rasterize, {"width": 0}, "width is 0"),
    (rasterize, {"near": 0.0}, "near is 0"),
    (rasterize, {"far": math.inf}, "far is inf"),
    (rasterize, {"outputs": 8}, "outputs is 8"),
    (rasterize, {"out_dtype": "float64"}, "out_dtype is float64"),
    (knn, {"k": 17}, "k is 17"),
    (fps, {"count": 10}, "count is 10"),
    (neighbours, {"resolution": 257}, "resolution is 257"),
    (mean, {"zeros": -1}, "zeros is -1"),
    (move, {"scale_activation": "relu"}, "scale_activation is 'relu'"),
    (move, {"terms": [DELTA] * 5}, "Term 5"),
    (move, {"terms": ["spin"]}, "Term 1 is a str"),
    (move, {"terms": [DELTA._replace(rotation="slerp")]}, "rotation is 'slerp'"),
    (move, {"terms": [DELTA._replace(interpolation="cubic")]}, "interpolation is 'cubic'"),
    (move, {"terms": [DELTA._replace(first_channels={"velocities": 0})]}, "velocities"),
]


@pytest.mark.parametrize(("call", "changes", "message"), WRONG)
def test_wrong_arrays_are_named(call, changes, message) -> None:
    with pytest.raises(InvalidTensor, match=f"(?s){message}"):
        call(**changes)


@pytest.mark.parametrize(("call", "changes", "message"), IMPOSSIBLE)
def test_what_cannot_work_is_refused(call, changes, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        call(**changes)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: cuda.gaussian_rasterize_workspace(gaussians=5, width=0, height=4, max_pairs=9),
        lambda: cuda.gaussian_rasterize_workspace(gaussians=5, width=4, height=4, max_pairs=0),
        lambda: cuda.knn_interpolate_workspace(queries=5, points=9, frames=1, channels=3, k=17),
        lambda: cuda.farthest_point_sample_workspace(points=5, count=6),
        lambda: cuda.voxel_neighbours_workspace(resolution=0),
    ],
)
def test_workspaces_of_what_cannot_work(ask) -> None:
    with pytest.raises(InvalidRequest):
        ask()


def test_empty_arrays_may_lie_anywhere_and_in_any_order() -> None:
    interface = cuda.array_interface("means", Claimed(0, 3, address=0, strides=(4, 40)))
    assert interface.shape == (0, 3)
    assert cuda.array_interface("x", Claimed(1, 5, strides=(999, 4))).address == ADDRESS


class Convertible:
    """As the handles of cuda-bindings are."""

    def __int__(self) -> int:
        return 42


@pytest.mark.parametrize(
    "stream",
    [
        42,
        np.uint64(42),
        Convertible(),
        SimpleNamespace(__cuda_stream__=lambda: (0, 42)),  # the protocol: cuda.core, CuPy, torch
        SimpleNamespace(__cuda_stream__=(0, 42), ptr=7),  # as an attribute, in its first version
        SimpleNamespace(handle=42),  # PyCUDA
        SimpleNamespace(handle=Convertible()),  # cuda.core
        SimpleNamespace(ptr=42),  # CuPy
        SimpleNamespace(cuda_stream=42),  # torch
    ],
)
def test_streams_of_every_library(stream) -> None:
    assert cuda.stream_handle(stream) == 42


@pytest.mark.parametrize("stream", [None, "42", 4.2, True, object(), SimpleNamespace(handle=None)])
def test_what_is_no_stream_is_refused(stream) -> None:
    with pytest.raises(InvalidRequest, match="not a CUDA stream"):
        cuda.stream_handle(stream)


# ---- the library's own checks, which come before any launch ---------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """The real library, which loads without a GPU too."""
    monkeypatch.undo()
    _library.load_cuda.cache_clear()
    if not _library.library_path(_library.CUDA_FILE_NAME).is_file():
        pytest.skip("the CUDA kernels were not built")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw": True, "rotation": "mul_left"}, "cannot be multiplied"),
        ({"first_channels": {"quats": 2}}, "fewer channels"),
        ({"first_channels": {"means": -2}}, "fewer channels"),
        ({"times": Claimed(0, dtype="float64"), "data": Claimed(0, 7, 5)}, "size cannot be"),
    ],
)
def test_terms_that_cannot_be_are_refused(built, changes, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        move(terms=[DELTA._replace(**changes)])


def test_activations_that_do_not_belong_are_refused(built) -> None:
    with pytest.raises(InvalidRequest, match="scales have no such activation"):
        move(scale_activation="sigmoid")
    with pytest.raises(InvalidRequest, match="opacities have no such activation"):
        move(opacity_activation="exp")


@pytest.mark.parametrize("operator", [name for name, _ in _library._OPERATORS])
def test_structs_of_another_version_are_refused(built, operator) -> None:
    library, call = _library.load_cuda(), dict(_library._OPERATORS)[operator](size=8)
    status = getattr(library, f"edge4d_cuda_{operator}")(ctypes.byref(call), ADDRESS, 1 << 20, 0)
    with pytest.raises(InvalidRequest, match="another version"):
        _library.check(library, operator, status)


def test_motion_of_another_version_is_refused(built) -> None:
    library = _library.load_cuda()
    status = library.edge4d_cuda_move_gaussians(ctypes.byref(_library.MoveGaussiansCall(size=8)), 0)
    with pytest.raises(InvalidRequest, match="another version"):
        _library.check(library, "move_gaussians", status)


def test_a_workspace_that_is_too_small_is_refused(built) -> None:
    for call in (rasterize, neighbours):
        with pytest.raises(InvalidRequest, match="workspace"):
            call(workspace=Claimed(0, dtype="uint8"))


def test_workspaces_are_told_without_a_gpu(built) -> None:
    few = cuda.gaussian_rasterize_workspace(gaussians=1000, width=64, height=64, max_pairs=1000)
    many = cuda.gaussian_rasterize_workspace(gaussians=1000, width=64, height=64, max_pairs=1_000_000)
    assert 0 < few < many
    assert cuda.knn_interpolate_workspace(queries=100, points=1000, frames=2, channels=3) >= 0
    assert cuda.farthest_point_sample_workspace(points=1000, count=10) >= 0
    assert cuda.voxel_neighbours_workspace(resolution=64) >= 4 * 64**3
