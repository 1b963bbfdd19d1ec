from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge4d.runtime import npy_files
from edge4d.runtime.errors import InvalidPicture
from edge4d.runtime.npy_files import array_from_npy, read_npy, read_npz


def npy_bytes(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


DTYPES = st.sampled_from(["|b1", "|u1", "<u2", "<i4", ">i4", "<i8", "<f2", "<f4", "<f8", ">f8"])


@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)), st.booleans())
def test_reads_what_numpy_writes(array, fortran):
    array = np.asfortranarray(array) if fortran else array
    read = array_from_npy(npy_bytes(array), "array", InvalidPicture)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(version):
    np.testing.assert_array_equal(
        array_from_npy(npy_bytes(np.arange(6), version=version), "array", InvalidPicture), np.arange(6)
    )


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1") + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(20),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", bytes(15)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", bytes(16)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (18446744073709551616,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        header("{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }", bytes(3)),
        header("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
        header("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        header("__import__('os').system('true')"),
        header("(" * 4000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(40),
    ],
)
def test_hostile_headers(content):
    with pytest.raises(InvalidPicture):
        array_from_npy(content, "array", InvalidPicture)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=6), st.integers(0, 160))
def test_mutated_bytes(edits, end):
    content = bytearray(npy_bytes(np.arange(8, dtype=np.float32).reshape(2, 4)))
    for place, value in edits:
        content[place] = value
    with contextlib.suppress(InvalidPicture):
        assert array_from_npy(bytes(content[:end]), "array", InvalidPicture).nbytes <= 64


def test_zip_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npy_files, "MAX_BYTES", 1 << 20)  # the true limit takes seconds to reach, for the test
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros(1 << 24, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 16
    with pytest.raises(InvalidPicture, match="too large"):
        read_npz(tmp_path / "bomb.npz", InvalidPicture)


def test_archives(tmp_path):
    np.savez_compressed(tmp_path / "one.npz", np.eye(3, dtype=bool))
    np.testing.assert_array_equal(read_npz(tmp_path / "one.npz", InvalidPicture), np.eye(3, dtype=bool))
    np.savez(tmp_path / "two.npz", a=np.eye(3), b=np.eye(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:-30])
    for name in ("two.npz", "cut.npz", "absent.npz"):
        with pytest.raises(InvalidPicture):
            read_npz(tmp_path / name, InvalidPicture)


def test_missing_files(tmp_path):
    with pytest.raises(InvalidPicture, match="Cannot read"):
        read_npy(tmp_path / "absent.npy", InvalidPicture)
    with pytest.raises(InvalidPicture, match="Cannot read"):
        read_npy(tmp_path, InvalidPicture)
