"""The shipped bundle `animals` on an animal that it never saw, in fewer steps than usual."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")  # makes the animal

from mesh_files import write_mesh_ply

import edge4d
from edge4d.export.models import gvf_diffusion
from edge4d.export.worlds import write_world
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.evaluate_objects import score
from edge4d.runtime.object_world_files import ObjectWorld
from edge4d.runtime.systems.gvf_diffusion import segments

FRAMES = 50  # three segments


@pytest.fixture(scope="module")
def animal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds") / "animals"
    write_world("animals", folder, count=1, seed=7, size=(128, 128), frames=FRAMES)
    world = ObjectWorld.load(folder)
    return world.sequence(world.sequences[0])


def followed(animal, precision):
    with edge4d.load("animals", backend="onnxruntime", precision=precision) as pipeline:
        return pipeline.generate(
            animal.video, canonical=animal.canonical, azimuth=0.0, steps=8, source_fps=12, size=(128, 128)
        )


def gain(scene, animal):
    """Decibels from other views, over the canonical Gaussians held still."""
    scores = defaultdict(list)
    score(scores, scene, animal, FRAMES, "onnxruntime")
    return np.mean(scores["psnr"]) - np.mean(scores["psnr_static"])


@pytest.fixture(scope="module")
def scene(animal):
    return followed(animal, "fp32")


def front(scene, animal):
    """[T,H,W,3] from the video's camera, on white."""
    renderer = edge4d.Renderer(scene, background=(1.0, 1.0, 1.0), outputs=("image",), dtype="float32")
    return np.stack([renderer.render(animal.cameras[0], float(t)).image for t in animal.times])


def test_it_is_small():
    bundle = Bundle.load("animals")
    sizes = {path: entry.bytes for path, entry in bundle.files.items() if ".fp32" not in path}
    assert sum(size for path, size in sizes.items() if not path.startswith("image.")) <= 8_000_000


def test_its_checkpoint_is_there():
    checkpoint = Path(gvf_diffusion.__file__).parent / "animals.safetensors"
    assert gvf_diffusion.build("animals", checkpoint).provenance == Bundle.load("animals").provenance


def test_it_moves_as_the_video_does(scene, animal):
    assert gain(scene, animal) > 1.5  # 2.2 dB, of the animal that gains the least


def test_half_precision_is_as_good(scene, animal):
    assert gain(followed(animal, "fp16"), animal) > gain(scene, animal) - 0.05


def test_segments_join_without_a_jump(scene, animal):
    """Frames differ from the one before by at most 1.5 times the median; in the true video by up to 1.3 times."""
    differences = np.abs(np.diff(front(scene, animal), axis=0)).mean((1, 2, 3))
    parts = list(segments(FRAMES, 24))
    assert len(parts) == 3
    joints = [i for (_, stop), (start, _) in zip(parts, parts[1:]) for i in range(start - 1, stop)]
    assert max(differences[joints]) <= 1.5 * np.median(differences)


def test_it_moves_as_a_mesh_does(animal, tmp_path):
    mesh = animal.mesh()
    for frame, vertices in enumerate(mesh.vertices):
        write_mesh_ply(tmp_path / f"{frame}.ply", vertices, mesh.faces)
    with edge4d.load("animals", backend="onnxruntime") as pipeline:
        scene = pipeline.animate(tmp_path, canonical=animal.canonical, source_fps=12, size=(128, 128))
    assert gain(scene, animal) > 7.0  # 9.3 dB: nothing is left to guess
