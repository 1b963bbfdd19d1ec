"""Finding the native libraries, what is said when one is missing or of another version, and their structs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge4d.kernels import _library
from edge4d.runtime.errors import CudaError, InvalidRequest, LibraryNotFound, PairOverflow

INCLUDE = Path(__file__).parents[2] / "kernels" / "include"
STRUCTS = {
    "edge4d_gaussian_rasterize": _library.GaussianRasterizeCall,
    "edge4d_knn_interpolate": _library.KnnInterpolateCall,
    "edge4d_farthest_point_sample": _library.FarthestPointSampleCall,
    "edge4d_voxel_neighbours": _library.VoxelNeighboursCall,
    "edge4d_submanifold_convolution": _library.SubmanifoldConvolutionCall,
    "edge4d_gather_mean": _library.GatherMeanCall,
    "edge4d_window_attention": _library.WindowAttentionCall,
    "edge4d_motion_term": _library.MotionTerm,
    "edge4d_move_gaussians": _library.MoveGaussiansCall,
    "edge4d_sampler_step": _library.SamplerStepCall,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the libraries are looked for, for the length of one test."""
    monkeypatch.setenv("EDGE4D_LIBRARY", str(tmp_path))
    for load in (_library.load, _library.load_cuda):
        load.cache_clear()
    yield tmp_path
    for load in (_library.load, _library.load_cuda):
        load.cache_clear()


def compiled(folder: Path, source: str, *options: str) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "source.cpp").write_text(source)
    subprocess.run([compiler, *options, "-o", folder / "compiled", folder / "source.cpp"], check=True)
    return folder / "compiled"


def build(folder: Path, source: str) -> None:
    library = compiled(folder, source, "-shared", "-fPIC")
    for name in (_library.FILE_NAME, _library.CUDA_FILE_NAME):
        shutil.copy(library, folder / name)


def test_the_library_is_loaded_once() -> None:
    assert _library.load() is _library.load()
    assert _library.load().edge4d_cpu_instructions() in (b"baseline", b"avx2", b"avx512")


LOADS = pytest.mark.parametrize("load", [_library.load, _library.load_cuda], ids=["cpu", "cuda"])


@LOADS
def test_a_missing_library_is_named(folder, load) -> None:
    with pytest.raises(LibraryNotFound, match=r"(?s)are not there.*EDGE4D_LIBRARY") as caught:
        load()
    assert str(folder) in str(caught.value)
    assert ("nvcc" in str(caught.value)) == (load is _library.load_cuda)


@LOADS
def test_a_file_that_is_no_library_is_refused(folder, load) -> None:
    for name in (_library.FILE_NAME, _library.CUDA_FILE_NAME):
        (folder / name).write_bytes(b"not a library")
    with pytest.raises(LibraryNotFound, match="cannot be loaded"):
        load()


@LOADS
def test_a_foreign_library_is_refused(folder, load) -> None:
    build(folder, 'extern "C" int something_else() { return 1; }')
    with pytest.raises(LibraryNotFound, match="cannot be loaded"):
        load()


@LOADS
def test_another_version_is_refused(folder, load) -> None:
    build(folder, 'extern "C" int edge4d_abi_version() { return 99; }')
    with pytest.raises(LibraryNotFound, match=f"has ABI 99, this package needs {_library.ABI_VERSION}"):
        load()


def test_the_structs_are_those_of_the_header(tmp_path) -> None:
    fields = [(name, field) for name, struct in STRUCTS.items() for field, _ in struct._fields_]
    lines = [f'std::printf("%zu ", sizeof({name}));' for name in STRUCTS]
    lines += [f'std::printf("%zu ", offsetof({name}, {field}));' for name, field in fields]
    source = f'#include <cstddef>\n#include <cstdio>\n#include "edge4d.h"\nint main() {{ {" ".join(lines)} }}'
    program = compiled(tmp_path, source, f"-I{INCLUDE}")
    found = [int(word) for word in subprocess.run([program], capture_output=True, check=True).stdout.split()]
    sizes = [ctypes.sizeof(struct) for struct in STRUCTS.values()]
    assert found == sizes + [getattr(STRUCTS[name], field).offset for name, field in fields]


def test_statuses_become_errors(folder) -> None:
    version = f'extern "C" int edge4d_abi_version() {{ return {_library.ABI_VERSION}; }}'
    build(folder, version + 'extern "C" const char* edge4d_last_error() { return "its own words"; }')
    library = _library._open(folder / _library.CUDA_FILE_NAME)
    _library.check(library, "spin", _library.OK)
    for status, error in {
        _library.INVALID: InvalidRequest,
        _library.OUT_OF_MEMORY: MemoryError,
        _library.TOO_MANY_PAIRS: PairOverflow,
        _library.CUDA_ERROR: CudaError,
    }.items():
        with pytest.raises(error, match="its own words"):
            _library.check(library, "spin", status)


def test_importing_the_operators_loads_nothing() -> None:
    script = (
        "import sys, edge4d.kernels.cpu, edge4d.kernels.cuda, edge4d.kernels.reference, edge4d.kernels.ops\n"
        "from edge4d.kernels import _library\n"
        "assert _library.load.cache_info().currsize == _library.load_cuda.cache_info().currsize == 0\n"
        "assert not {'torch', 'onnx', 'edge4d.export'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
