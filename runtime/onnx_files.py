"""What ONNX files of ours are, and which files one reads: its external data, found without ONNX and without opening any
of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

OPSET = 17  # the newest that TensorRT 8.6 reads
IR_VERSION = 8  # the one that came with opset 17

# Per message of onnx.proto, the fields that lead to external data: {number: the message in that field}.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry, such as location = "core.weights"


def external_locations(path: Path) -> set[str]:
    """The locations of all external data of an ONNX file, as written there: paths relative to the file's folder.

    Raises:
        ValueError: the file is not one protobuf message.
    """
    if path.stat().st_size == 0:  # which cannot be mapped
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {value.decode("utf-8", "replace") for value in _locations(data)}


def _locations(data: mmap.mmap) -> Iterator[bytes]:
    pending = [("model", 0, len(data))]  # not recursion: a file may nest graphs without end
    while pending:
        message, start, end = pending.pop()
        if message == "entry":
            pairs = [(number, data[low:high]) for number, low, high in _messages(data, start, end)]
            if (_KEY, b"location") in pairs:
                yield from (value for number, value in pairs if number == _VALUE)
        else:
            inner = _FIELDS[message]
            pending += [
                (inner[number], low, high) for number, low, high in _messages(data, start, end) if number in inner
            ]


def _messages(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field, start, end) of every field with bytes, which messages and texts are; other fields are skipped."""
    while start < end:
        tag, start = _varint(data, start, end)
        kind = tag & 7
        if kind == 0:
            _, start = _varint(data, start, end)
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(data, start, end)
            yield tag >> 3, start, min(start + size, end)
            start += size
        else:
            raise ValueError(f"byte {start} begins a field of kind {kind}, which ONNX does not use")
    if start > end:
        raise ValueError(f"a field ends {start - end} bytes behind the message that it is in")


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
    raise ValueError(f"byte {start} is inside a number without an end")
