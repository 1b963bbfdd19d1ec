"""What a bundle is calibrated on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edge4d.calib.photos import content_of, read_photos
from edge4d.runtime.errors import InvalidCalibration, InvalidPicture, InvalidWorld

SIZE = (64, 32)


def picture(path, seed: int = 0, size=(80, 60)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    for index in range(10):
        picture(tmp_path / f"{index}.png", index)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_cropped_to_the_size(folder):
    data = read_photos(folder, 128, SIZE)
    assert [photo.name for photo in data.photos] == [f"{index}.png" for index in range(10)]
    assert {photo.image.shape for photo in data.photos} == {(32, 64, 3)}
    assert (data.origin, data.warnings) == ({"pictures": 10, "samples": 10}, ())


def test_fewer_samples_are_spread_evenly(folder):
    assert [photo.name for photo in read_photos(folder, 4, SIZE).photos] == ["0.png", "2.png", "5.png", "7.png"]


def test_content_changes_with_the_pictures(folder):
    before = content_of(read_photos(folder, 128, SIZE))
    assert content_of(read_photos(folder, 128, SIZE)) == before
    picture(folder / "3.png", 99)
    assert content_of(read_photos(folder, 128, SIZE)) != before


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None], ids=["empty", "missing"])
def test_no_pictures(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(InvalidCalibration, match=r"nothing to calibrate on[\s\S]*'.*data'[\s\S]*edge4d world"):
        read_photos(tmp_path / "data", 8, SIZE)


def test_no_samples(folder):
    with pytest.raises(InvalidCalibration, match=r"needs photographs[\s\S]*0 were asked for"):
        read_photos(folder, 0, SIZE)


def test_one_picture(folder):
    assert read_photos(folder, 1, SIZE).warnings == ("Ranges come from 1 photograph; what others show may be cut off.",)


def test_a_picture_of_one_colour_among_others(folder):
    Image.new("RGB", (64, 32), (9, 9, 9)).save(folder / "4.png")
    assert read_photos(folder, 128, SIZE).warnings == ("1 photograph of one colour: 4.png.",)


def test_nothing_but_pictures_of_one_colour(tmp_path):
    for index in range(9):
        Image.new("RGB", (64, 32), (index, 9, 9)).save(tmp_path / f"{index}.png")
    with pytest.raises(InvalidCalibration, match=r"show nothing[\s\S]*such as '0.png'"):
        read_photos(tmp_path, 128, SIZE)


def test_a_damaged_picture(folder):
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:200])
    with pytest.raises(InvalidPicture, match=r"5\.png"):
        read_photos(folder, 128, SIZE)


def world(folder, size=(64, 32)) -> None:
    """One sequence of two frames, whose camera looks at noise."""
    sequence = folder / "0000-drive"
    sequence.mkdir()
    picture(sequence / "photo.png", size=size)
    np.save(sequence / "cameras.npy", np.stack([np.eye(4)] * 2))
    np.save(sequence / "Ks.npy", np.stack([np.array([[64.0, 0, 32], [0, 64, 16], [0, 0, 1]])] * 2))
    np.save(sequence / "times.npy", np.array([0.0, 0.1]))
    np.save(sequence / "frames_depth.npy", np.ones((2, size[1], size[0]), np.float16))
    np.savez_compressed(sequence / "frames_moving.npz", np.zeros((2, size[1], size[0]), bool))
    description = {"format": 1, "world": "w", "seed": 3, "fps": 10.0, "frames": 2, "size": list(size)}
    (folder / "world.json").write_text(json.dumps({**description, "sequences": [sequence.name]}))


def test_a_world_has_its_own_size_and_cameras(tmp_path):
    world(tmp_path)
    data = read_photos(tmp_path, 8, (448, 256))
    assert (data.size, data.origin) == ((64, 32), {"world": "w", "seed": 3, "samples": 1})
    assert data.photos[0].intrinsics == (64, 64, 32, 16)


def test_maps_for_networks_that_do_not_see_them(tmp_path):
    world(tmp_path)
    np.save(tmp_path / "0000-drive" / "depth.npy", np.full((32, 64), 5, np.float32))
    Image.fromarray(np.full((32, 64), 2, np.uint8)).save(tmp_path / "0000-drive" / "instances.png")
    plain, mapped = (read_photos(tmp_path, 8, SIZE, with_maps=with_maps) for with_maps in (False, True))
    assert set(plain.photos[0].known) == {"intrinsics"}
    known = mapped.photos[0].known
    assert (known["depth"].shape, known["depth"].max(), known["instances"].max()) == ((32, 64), 5, 2)
    assert content_of(plain) != content_of(mapped)
    (tmp_path / "world.json").unlink()
    with pytest.raises(InvalidCalibration, match=r"cannot see depth and instances[\s\S]*world:street"):
        read_photos(tmp_path, 8, SIZE, with_maps=True)


def test_a_world_with_a_photograph_of_another_size(tmp_path):
    world(tmp_path)
    picture(tmp_path / "0000-drive" / "photo.png", size=(48, 32))
    with pytest.raises(InvalidWorld, match=r"photo.png does not fit"):
        read_photos(tmp_path, 8, SIZE)


def test_a_world_whose_camera_is_nan(tmp_path):
    from edge4d.runtime.errors import InvalidCamera

    world(tmp_path)
    np.save(tmp_path / "0000-drive" / "Ks.npy", np.full((2, 3, 3), np.nan))
    with pytest.raises(InvalidCamera):
        read_photos(tmp_path, 8, SIZE)
