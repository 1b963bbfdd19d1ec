from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge4d.runtime.errors import Edge4DError, InvalidPicture, InvalidWorld
from edge4d.runtime.world_files import World


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One sequence of three frames, 8x6."""
    sequence = tmp_path / "a"
    (sequence / "frames").mkdir(parents=True)
    for name in ("photo.png", "frames/0000.png", "frames/0001.png", "frames/0002.png"):
        Image.fromarray(np.full((6, 8, 3), len(name), np.uint8)).save(sequence / name)
    np.save(sequence / "cameras.npy", np.tile(np.eye(4), (3, 1, 1)))
    np.save(sequence / "Ks.npy", np.tile([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]], (3, 1, 1)))
    np.save(sequence / "times.npy", np.arange(3) / 12)
    np.save(sequence / "frames_depth.npy", np.full((3, 6, 8), 5.0, np.float16))
    np.savez_compressed(sequence / "frames_moving.npz", np.zeros((3, 6, 8), bool))
    describe(tmp_path)
    return tmp_path


def describe(folder: Path, **changes: object) -> None:
    description = {
        "format": 1,
        "world": "street",
        "seed": 7,
        "fps": 12.0,
        "frames": 3,
        "size": [8, 6],
        "sequences": ["a"],
    }
    (folder / "world.json").write_text(json.dumps({**description, **changes}))


def test_reads_a_world(folder):
    world = World.load(folder)
    assert (world.name, world.seed, world.fps, world.frames, world.size) == ("street", 7, 12.0, 3, (8, 6))
    sequence = world.sequence("a")
    assert sequence.photo.shape == (6, 8, 3)
    assert sequence.cameras[2].intrinsics == (8.0, 8.0, 4.0, 3.0)
    assert sequence.times.tolist() == [0, 1 / 12, 2 / 12]
    assert sequence.depth.shape == sequence.moving.shape == (3, 6, 8)
    assert (sequence.frame(1) == len("frames/0001.png")).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": "1"},
        {"world": 3},
        {"seed": 1.5},
        {"fps": 0},
        {"fps": True},
        {"frames": 1},
        {"frames": 10**12},
        {"size": [8]},
        {"size": [8, 10**9]},
        {"size": [8, "6"]},
        {"sequences": []},
        {"sequences": ["a", "a"]},
        {"sequences": ["../a"]},
        {"sequences": ["/etc"]},
        {"sequences": [".."]},
        {"sequences": [7]},
    ],
)
def test_descriptions_that_cannot_be(folder, changes):
    describe(folder, **changes)
    with pytest.raises(InvalidWorld):
        World.load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000])
def test_descriptions_that_are_none(folder, content):
    (folder / "world.json").write_bytes(content)
    with pytest.raises(InvalidWorld):
        World.load(folder)


def test_there_is_no_world(tmp_path):
    with pytest.raises(InvalidWorld, match="not a folder of worlds"):
        World.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("cameras.npy", np.zeros((2, 4, 4))),
        ("cameras.npy", np.zeros((3, 4, 4))),
        ("cameras.npy", np.full((3, 4, 4), np.nan)),
        ("Ks.npy", np.zeros((3, 3, 3))),
        ("Ks.npy", np.zeros((3, 4))),
        ("times.npy", np.array([0.0, 0.1, 0.1])),
        ("times.npy", np.array([0.1, 0.2, 0.3])),
        ("times.npy", np.array([0.0, np.nan, 0.3])),
        ("frames_depth.npy", np.zeros((3, 8, 6))),
    ],
)
def test_arrays_that_do_not_fit(folder, name, array):
    np.save(folder / "a" / name, array)
    with pytest.raises(Edge4DError):
        World.load(folder).sequence("a")


def test_missing_files(folder):
    world = World.load(folder)
    sequence = world.sequence("a")
    (folder / "a" / "frames" / "0001.png").unlink()
    with pytest.raises(InvalidPicture):
        sequence.frame(1)
    shutil.rmtree(folder / "a")
    with pytest.raises(InvalidWorld):
        world.sequence("a")


def test_pictures_of_another_size(folder):
    Image.new("RGB", (9, 6)).save(folder / "a" / "frames" / "0001.png")
    with pytest.raises(InvalidWorld, match="does not fit"):
        World.load(folder).sequence("a").frame(1)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(
        ["../world.json", "cameras.npy", "times.npy", "frames_depth.npy", "frames_moving.npz", "photo.png"]
    ),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.floats(0, 1),
)
def test_mutated_files_give_a_world_or_a_named_error(folder, name, edits, end):
    path = folder / "a" / name
    whole = path.read_bytes()
    content = bytearray(whole)
    for place, value in edits:
        content[int(place * len(content))] = value
    path.write_bytes(content[: int(end * len(content)) + 1])
    with contextlib.suppress(Edge4DError):
        World.load(folder).sequence("a").frame(0)
    path.write_bytes(whole)
