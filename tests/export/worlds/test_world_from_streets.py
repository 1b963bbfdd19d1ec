"""Folders of worlds: what is written is what the reader reads and what the streets are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from edge4d.export.worlds import WORLDS, street, write_world  # noqa: E402
from edge4d.runtime.errors import InvalidRequest  # noqa: E402
from edge4d.runtime.world_files import World  # noqa: E402

SIZE = (64, 32)
SEED = 5  # a car of its first street turns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of three frames, 64x32."""
    folder = tmp_path_factory.mktemp("worlds") / "street"
    write_world("street", folder, count=2, seed=SEED, size=SIZE, frames=3, fps=6.0)
    return folder


def test_the_reader_reads_it(folder):
    world = World.load(folder)
    assert (world.name, world.seed, world.fps, world.frames, world.size) == ("street", SEED, 6.0, 3, SIZE)
    assert world.sequences == ("0000-drive", "0001-orbit")
    intrinsics = street.evaluation_streets(SEED, 2).intrinsics(*SIZE)
    for index, name in enumerate(world.sequences):
        sequence = world.sequence(name)
        np.testing.assert_allclose(sequence.times, [0, 1 / 6, 2 / 6])
        assert sequence.depth.shape == sequence.moving.shape == (3, 32, 64)
        assert [sequence.frame(i).shape for i in range(3)] == [(32, 64, 3)] * 3
        assert sequence.photo.std() > 5
        np.testing.assert_array_equal(sequence.cameras[0].c2w, np.eye(4))
        assert not np.allclose(sequence.cameras[2].c2w, np.eye(4))
        for camera in sequence.cameras:
            np.testing.assert_allclose(camera.intrinsics, intrinsics[index].tolist(), rtol=1e-6)  # float32 at most


def test_the_first_frame_is_the_photograph(folder):
    world = World.load(folder)
    for name in world.sequences:
        sequence = world.sequence(name)
        np.testing.assert_array_equal(sequence.frame(0), sequence.photo)
        np.testing.assert_array_equal(np.load(folder / name / "depth.npy").astype(np.float16), sequence.depth[0])
        assert not np.array_equal(sequence.frame(2), sequence.photo)


def test_it_shows_the_street_at_its_times(folder):
    """The last frame against a rendering of all streets at that pose and time."""
    streets = street.evaluation_streets(SEED, 2)
    world = World.load(folder)
    sequences = [world.sequence(name) for name in world.sequences]
    poses = torch.from_numpy(np.stack([sequence.cameras[2].c2w for sequence in sequences])).float()
    view = street.render(streets, torch.full((2,), 2 / 6), streets.camera @ poses, *SIZE)
    for index, sequence in enumerate(sequences):
        difference = np.abs(sequence.frame(2) / 255 - view.image[index].numpy())
        assert np.quantile(difference, 0.99) < 0.6 / 255  # 8 bits; a pose differs in its last bit, which edges show
        near = np.isfinite(sequence.depth[2])
        # float16 has 11 bits
        np.testing.assert_allclose(
            np.quantile(np.abs(sequence.depth[2][near] / view.depth[index].numpy()[near] - 1), 0.99), 0, atol=1e-3
        )
        moving = np.concatenate([[False], streets.objects.moving[index].numpy()])[view.objects[index].numpy()]
        assert (sequence.moving[2] != moving).mean() < 0.01


def test_instances_are_the_objects(folder):
    streets = street.evaluation_streets(SEED, 2)
    view = street.render(streets, torch.zeros(2), streets.camera, *SIZE)
    for index, name in enumerate(World.load(folder).sequences):
        ids = np.asarray(Image.open(folder / name / "instances.png"))
        assert (ids != view.objects[index].numpy()).mean() < 0.01  # the camera comes from a product with the identity
        assert ids.max() > 0
        moving = World.load(folder).sequence(name).moving[0]
        table = streets.objects.moving[index].numpy()
        assert (moving == np.concatenate([[False], table])[ids]).all()


def test_motion_is_the_derivative_of_the_path(folder):
    """In the photograph's camera frame, by differences of where an object is."""
    streets = street.evaluation_streets(SEED, 2)
    motions = json.loads((folder / "0000-drive" / "motion.json").read_text())
    assert sorted(map(int, motions)) == [slot + 1 for slot in streets.objects.present[0].nonzero()[:, 0].tolist()]
    to_camera = np.linalg.inv(streets.camera[0].double().numpy())
    objects, h = streets.objects, 0.5
    checked = turns = 0
    for key, motion in motions.items():
        slot = int(key) - 1

        def place(t: float, slot: int = slot) -> np.ndarray:
            shift, _ = objects.at(torch.tensor([t, t]))
            point = (objects.centres + shift)[0, slot].double().numpy()
            return to_camera[:3, :3] @ point + to_camera[:3, 3]

        # A parabola: differences are exact but for float32 places of tens of metres.
        np.testing.assert_allclose(motion["centre"], place(0), atol=1e-4)
        np.testing.assert_allclose(motion["velocity"], (place(h) - place(-h)) / (2 * h), atol=1e-4)
        np.testing.assert_allclose(motion["acceleration"], (place(h) - 2 * place(0) + place(-h)) / h**2, atol=1e-4)
        down = to_camera[:3, 1]  # the street's y in the camera's frame
        np.testing.assert_allclose(motion["angular_velocity"], float(objects.yaw_rate[0, slot]) * down, atol=1e-6)
        assert motion["moving"] == bool(objects.moving[0, slot]) == (np.linalg.norm(motion["velocity"]) > 0)
        checked += motion["moving"]
        turns += any(motion["angular_velocity"])
    assert checked
    assert turns


def test_the_first_sequences_do_not_depend_on_the_count(folder, tmp_path):
    write_world("street", tmp_path / "one", count=1, seed=SEED, size=SIZE, frames=2, fps=6.0)
    for name in ("photo.png", "depth.npy", "instances.png", "motion.json", "frames/0001.png"):
        first = (folder / "0000-drive" / name).read_bytes()
        assert (tmp_path / "one" / "0000-drive" / name).read_bytes() == first, name


def test_progress_and_an_empty_folder(tmp_path):
    told: list[tuple[int, int]] = []
    (tmp_path / "world").mkdir()
    write_world(
        WORLDS[0],
        tmp_path / "world",
        count=2,
        seed=0,
        size=(16, 16),
        frames=2,
        progress=lambda done, count: told.append((done, count)),
    )
    assert told == [(1, 2), (2, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert World.load(tmp_path / "world").fps == 12.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "moon"}, "moon"),
        ({"name": ""}, "street"),
        ({"count": 0}, "0"),
        ({"count": -1}, "-1"),
        ({"count": 10_000}, "10000"),
        ({"size": (60, 32)}, "60x32"),
        ({"size": (64, 8)}, "64x8"),
        ({"size": (0, 32)}, "0x32"),
        ({"size": (-16, 32)}, "-16x32"),
        ({"size": (64, 4096)}, "64x4096"),
        ({"frames": 1}, "1"),
        ({"frames": 10_000}, "10000"),
        ({"fps": 0.0}, "0"),
        ({"fps": -12.0}, "-12"),
        ({"fps": float("nan")}, "nan"),
        ({"fps": float("inf")}, "inf"),
    ],
)
def test_what_cannot_be_made_is_said_and_leaves_nothing(tmp_path, changes, words):
    request = {"name": "street", "count": 1, "seed": 0, "size": SIZE, "frames": 2, "fps": 12.0, **changes}
    with pytest.raises(InvalidRequest) as error:
        write_world(request.pop("name"), tmp_path / "world", **request)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_folders_in_use_are_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InvalidRequest, match="in use"):
            write_world("street", tmp_path / name, count=1, seed=0, size=SIZE, frames=2)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failure_leaves_nothing(tmp_path):
    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world("street", tmp_path / "world", count=1, seed=0, size=(16, 16), frames=2, progress=stop)
    assert list(tmp_path.iterdir()) == []
