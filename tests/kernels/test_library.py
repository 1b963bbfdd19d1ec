"""Finding the native library: where it is looked for, and what is said when it is missing or of another version."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from edge4d.kernels import _library
from edge4d.runtime.errors import LibraryNotFound


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the library is looked for, for the length of one test."""
    monkeypatch.setenv("EDGE4D_LIBRARY", str(tmp_path))
    _library.load.cache_clear()
    yield tmp_path
    _library.load.cache_clear()


def build(folder, source: str) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "library.cpp").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", folder / _library.FILE_NAME, folder / "library.cpp"]
    subprocess.run(command, check=True)


def test_the_library_is_loaded_once() -> None:
    assert _library.load() is _library.load()
    assert _library.load().edge4d_cpu_instructions() in (b"baseline", b"avx2", b"avx512")


def test_a_missing_library_is_named(folder) -> None:
    with pytest.raises(LibraryNotFound, match=r"(?s)are not there.*EDGE4D_LIBRARY") as caught:
        _library.load()
    assert str(folder) in str(caught.value)


def test_a_file_that_is_no_library_is_refused(folder) -> None:
    (folder / _library.FILE_NAME).write_bytes(b"not a library")
    with pytest.raises(LibraryNotFound, match="cannot be loaded"):
        _library.load()


def test_a_foreign_library_is_refused(folder) -> None:
    build(folder, 'extern "C" int something_else() { return 1; }')
    with pytest.raises(LibraryNotFound, match="cannot be loaded"):
        _library.load()


def test_another_version_is_refused(folder) -> None:
    build(folder, 'extern "C" int edge4d_abi_version() { return 99; }')
    with pytest.raises(LibraryNotFound, match=f"has ABI 99, this package needs {_library.ABI_VERSION}"):
        _library.load()


def test_importing_the_operators_loads_nothing() -> None:
    script = (
        "import sys, edge4d.kernels.cpu, edge4d.kernels.reference, edge4d.kernels.ops\n"
        "from edge4d.kernels import _library\n"
        "assert _library.load.cache_info().currsize == 0\n"
        "assert not {'torch', 'onnx', 'edge4d.export'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
