from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge4d.runtime.errors import Edge4DError, InvalidCamera, InvalidPicture, InvalidWorld
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.object_world_files import ObjectWorld


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One sequence of two frames of a triangle, 8x8, with two other views."""
    sequence = tmp_path / "a"
    for name in ("video", "views"):
        (sequence / name).mkdir(parents=True)
    for number in range(2):
        picture(sequence / "video" / f"{number:04d}.png", number)
        for view in range(2):
            picture(sequence / "views" / f"{number:04d}-{view}.png", 10 * number + view)
    cameras = [object_camera(8, azimuth) for azimuth in (0, 45, 90)]
    arrays = {
        "cameras": np.stack([camera.c2w for camera in cameras]),
        "K": cameras[0].K,
        "times": np.arange(2) / 12,
        "vertices": np.zeros((2, 3, 3), np.float32),
        "faces": np.array([[0, 1, 2]], np.int32),
        "colors": np.ones((3, 3), np.float32),
    }
    for name, array in arrays.items():
        np.save(sequence / f"{name}.npy", array)
    describe(tmp_path)
    return tmp_path


def picture(path: Path, value: int, shape: tuple[int, ...] = (8, 8, 4)) -> None:
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def describe(folder: Path, **changes: object) -> None:
    description = {
        "format": 1,
        "kind": "objects",
        "world": "animals",
        "seed": 7,
        "fps": 12.0,
        "frames": 2,
        "size": [8, 8],
        "views": 2,
        "sequences": ["a"],
    }
    (folder / "world.json").write_text(json.dumps({**description, **changes}))


def test_reads_objects(folder):
    world = ObjectWorld.load(folder)
    assert (world.name, world.seed, world.frames, world.size, world.views) == ("animals", 7, 2, (8, 8), 2)
    sequence = world.sequence("a")
    assert (sequence.video[1] == 1).all()
    assert (sequence.view(1, 2) == 11).all()
    np.testing.assert_allclose(sequence.cameras[2].c2w[:3, 3], [2, 0, 0], atol=1e-12)
    assert sequence.canonical == folder / "a" / "canonical.ply"
    mesh = sequence.mesh()
    assert (mesh.vertices.shape, mesh.faces.tolist(), mesh.colors.shape) == ((2, 3, 3), [[0, 1, 2]], (3, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "photographs"},
        {"kind": 3},
        {"kind": None},
        {"views": 0},
        {"views": "2"},
        {"views": 10**9},
        {"views": 3},
    ],
)
def test_descriptions_that_do_not_fit(folder, changes):
    describe(folder, **changes)
    with pytest.raises(InvalidWorld):
        ObjectWorld.load(folder).sequence("a")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("cameras", np.eye(4)[None]),
        ("K", np.eye(4)),
        ("times", np.zeros(2)),
        ("times", np.arange(3)),
    ],
)
def test_sequences_that_do_not_fit(folder, name, array):
    np.save(folder / "a" / f"{name}.npy", array)
    with pytest.raises(InvalidWorld):
        ObjectWorld.load(folder).sequence("a")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("vertices", np.zeros((2, 3))),
        ("vertices", np.zeros((3, 3, 3))),
        ("faces", np.array([[0, 1, 3]])),
        ("faces", np.array([[-1, 1, 2]])),
        ("faces", np.array([[0.0, 1.0, 2.0]])),
        ("faces", np.zeros((1, 4), np.int32)),
        ("faces", np.zeros((), np.int32)),
        ("colors", np.ones((4, 3))),
    ],
)
def test_meshes_that_do_not_fit(folder, name, array):
    sequence = ObjectWorld.load(folder).sequence("a")
    np.save(folder / "a" / f"{name}.npy", array)
    with pytest.raises(InvalidWorld):
        sequence.mesh()


def test_pictures_and_cameras_that_do_not_fit(folder):
    picture(folder / "a" / "video" / "0001.png", 0, (8, 8, 3))
    with pytest.raises(InvalidWorld, match=r"0001\.png"):
        ObjectWorld.load(folder).sequence("a")
    (folder / "a" / "video" / "0001.png").unlink()
    with pytest.raises(InvalidPicture):
        ObjectWorld.load(folder).sequence("a")
    picture(folder / "a" / "video" / "0001.png", 0)
    np.save(folder / "a" / "K.npy", np.zeros((3, 3)))
    with pytest.raises(InvalidCamera):
        ObjectWorld.load(folder).sequence("a")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damaged_files_raise_errors_of_ours(folder, data):
    name = data.draw(st.sampled_from(["world.json", "a/cameras.npy", "a/faces.npy", "a/video/0000.png"]))
    path = folder / name
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    path.write_bytes(original[:position] + data.draw(st.binary(max_size=8)) + original[position + 1 :])
    try:
        with contextlib.suppress(Edge4DError):
            ObjectWorld.load(folder).sequence("a").mesh()
    finally:
        path.write_bytes(original)
