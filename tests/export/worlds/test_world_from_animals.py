"""Folders of animals: what is written is what the reader reads, what the animals are, and enough to judge motion by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.worlds import animals, write_world  # noqa: E402
from edge4d.export.worlds.mesh_render import render  # noqa: E402
from edge4d.export.worlds.world_from_animals import CAMERAS, GAUSSIANS  # noqa: E402
from edge4d.runtime import cli  # noqa: E402
from edge4d.runtime.errors import InvalidRequest, InvalidWorld  # noqa: E402
from edge4d.runtime.metrics import psnr  # noqa: E402
from edge4d.runtime.object_views import object_camera  # noqa: E402
from edge4d.runtime.object_world_files import ObjectWorld  # noqa: E402
from edge4d.runtime.ply import read_ply  # noqa: E402
from edge4d.runtime.renderer import Renderer  # noqa: E402
from edge4d.runtime.scene import Scene4D  # noqa: E402
from edge4d.runtime.world_files import World  # noqa: E402

SEED, SIZE = 3, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of three frames."""
    folder = tmp_path_factory.mktemp("worlds") / "animals"
    write_world("animals", folder, count=2, seed=SEED, size=(SIZE, SIZE), frames=3, fps=6.0)
    return folder


def on_white(pixels: np.ndarray) -> np.ndarray:
    unit = pixels.astype(np.float32) / 255
    return unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]


def test_the_reader_reads_it(folder):
    world = ObjectWorld.load(folder)
    assert (world.name, world.seed, world.fps, world.frames, world.size) == ("animals", SEED, 6.0, 3, (SIZE, SIZE))
    assert world.sequences == ("0000-quadruped", "0001-bird")
    assert world.views == 4
    for name in world.sequences:
        sequence = world.sequence(name)
        np.testing.assert_allclose(sequence.times, [0, 1 / 6, 2 / 6])
        assert sequence.video.shape == (3, SIZE, SIZE, 4)
        assert sequence.view(2, 4).shape == (SIZE, SIZE, 4)
        for camera, angles in zip(sequence.cameras, CAMERAS):
            expected = object_camera(SIZE, *angles)
            np.testing.assert_array_equal(camera.c2w, expected.c2w)
            np.testing.assert_array_equal(camera.K, expected.K)


def test_the_mesh_is_the_animal(folder):
    world = ObjectWorld.load(folder)
    for index, name in enumerate(world.sequences):
        mesh, animal = world.sequence(name).mesh(), animals.evaluation_animals(SEED, index)
        times = torch.arange(3)[None] / 6
        np.testing.assert_allclose(mesh.vertices, animal.vertices(times)[0], atol=1e-6)
        np.testing.assert_array_equal(mesh.faces, animal.faces)
        np.testing.assert_array_equal(mesh.colors, animal.colors[0])


def test_pictures_are_the_mesh_seen_by_its_cameras(folder):
    world = ObjectWorld.load(folder)
    for name in world.sequences:
        sequence = world.sequence(name)
        mesh = sequence.mesh()
        vertices, faces, colors = (torch.from_numpy(np.array(part)) for part in vars(mesh).values())
        for number, camera in enumerate(sequence.cameras):
            viewmat, K = (torch.from_numpy(np.array(m)).float() for m in (camera.viewmat, camera.K))
            drawn = render(vertices[2:], faces.long(), colors[None], viewmat[None], K, SIZE, samples=3)[0].numpy()
            found = sequence.video[2] if number == 0 else sequence.view(2, number)
            expected = drawn[..., :3] + 1 - drawn[..., 3:]
            assert 0.02 < (found[..., 3] > 0).mean() < 0.5
            assert np.abs(on_white(found) - expected).max() < 1.5 / 255  # 8 bits of colour, and of alpha


def test_the_canonical_gaussians_show_the_first_frame_and_not_the_last(folder):
    """What evaluation compares: in views that no network sees, Gaussians that stand still are right at time 0 alone."""
    sequence = ObjectWorld.load(folder).sequence("0001-bird")
    scene = read_ply(sequence.canonical)
    assert len(scene.means) == GAUSSIANS
    scene = Scene4D(**{**vars(scene), "eps2d": 0.1, "antialiased": True, "background": (1.0, 1.0, 1.0)})
    renderer = Renderer(scene, outputs=("image",), dtype="float32")

    def mean_psnr(index: int) -> float:
        views = range(1, len(sequence.cameras))
        images = [np.clip(renderer.render(sequence.cameras[view], 0.0).image, 0, 1) for view in views]
        return float(np.mean([psnr(i, on_white(sequence.view(index, v))) for i, v in zip(images, views)]))

    assert mean_psnr(0) > 27
    assert mean_psnr(2) < mean_psnr(0) - 5


def test_the_first_sequences_do_not_depend_on_the_count(folder, tmp_path):
    write_world("animals", tmp_path / "one", count=1, seed=SEED, size=(SIZE, SIZE), frames=2, fps=6.0)
    for name in ("video/0001.png", "views/0001-3.png", "colors.npy", "faces.npy", "canonical.ply"):
        first = (folder / "0000-quadruped" / name).read_bytes()
        assert (tmp_path / "one" / "0000-quadruped" / name).read_bytes() == first, name


def test_kinds_of_worlds_are_told_apart(folder):
    with pytest.raises(InvalidWorld, match="other data"):
        World.load(folder)


def test_pictures_are_square(tmp_path):
    with pytest.raises(InvalidRequest, match="square"):
        write_world("animals", tmp_path / "world", count=1, seed=0, size=(96, 64))
    assert not list(tmp_path.iterdir())


def test_the_command_line_makes_them_in_their_own_size(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["world", "animals", "--count", "1", "--seed", "5", "--frames", "2", "-o", str(tmp_path / "world")])
    assert not stop.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "world")
    world = ObjectWorld.load(tmp_path / "world")
    assert (world.size, world.seed, world.frames, world.fps) == ((256, 256), 5, 2, 12.0)
