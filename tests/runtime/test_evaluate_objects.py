from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parent))

from gvf_bundle import write_bundle  # noqa: E402

import edge4d  # noqa: E402
from edge4d.export.worlds import animals, surface_gaussians, write_world  # noqa: E402
from edge4d.runtime import cli  # noqa: E402
from edge4d.runtime.canonical import raw_from_gaussians  # noqa: E402
from edge4d.runtime.errors import InvalidWorld  # noqa: E402
from edge4d.runtime.evaluate_objects import FIGURES, evaluate_objects, score  # noqa: E402
from edge4d.runtime.gaussians import Gaussians  # noqa: E402
from edge4d.runtime.object_world_files import ObjectWorld  # noqa: E402
from edge4d.runtime.ply import C0  # noqa: E402
from edge4d.runtime.scene import Scene4D  # noqa: E402
from edge4d.runtime.variation_field import ACTIVATION, motion_from_changes  # noqa: E402

SIZE, FRAMES, SEED = 96, 3, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ObjectWorld:
    """Two animals; half a second."""
    folder = tmp_path_factory.mktemp("worlds") / "animals"
    write_world("animals", folder, count=2, seed=SEED, size=(SIZE, SIZE), frames=FRAMES, fps=4.0)
    return ObjectWorld.load(folder)


def true_scene(world: ObjectWorld, index: int, count: int = 4000) -> Scene4D:
    """Gaussians that are carried along by the true mesh, as changes of raw values."""
    animal = animals.evaluation_animals(SEED, index)
    sequence = world.sequence(world.sequences[index])
    times = torch.from_numpy(sequence.times).float()[None]
    vertices, uniform = animal.vertices(times), torch.rand(1, count, 3, generator=torch.Generator().manual_seed(0))
    points = surface_gaussians.sample_points(vertices[:, 0], animal.faces, uniform)
    found = surface_gaussians.gaussians_at(points, animal.faces, vertices, animal.colors)
    raws = [
        raw_from_gaussians(
            Gaussians(
                found.means[0, t].numpy(),
                found.quats[0, t].numpy(),
                found.scales[0, t].numpy(),
                np.full(count, surface_gaussians.OPACITY, np.float32),
                ((found.colors[0, :, None] - 0.5) / C0).numpy(),
            )
        )
        for t in range(FRAMES)
    ]
    changes = np.zeros((FRAMES, count, 14), np.float32)
    for t, raw in enumerate(raws):
        changes[t, :, 0:3] = raw.means - raws[0].means
        changes[t, :, 3:6] = raw.scales - raws[0].scales
        changes[t, :, 6:10] = raw.quats - raws[0].quats
    return Scene4D(
        **raws[0]._asdict(),
        groups=np.zeros(count, np.int32),
        camera=sequence.cameras[0],
        activation=ACTIVATION,
        motion=(motion_from_changes(changes, sequence.times),),
        t1=float(sequence.times[-1]),
        eps2d=0.1,
        antialiased=True,
    )


def test_true_motion_is_as_good_as_the_gaussians_are(world):
    for index, name in enumerate(world.sequences):
        scores: dict[str, list[float]] = defaultdict(list)
        score(scores, true_scene(world, index), world.sequence(name), FRAMES)
        assert set(scores) == set(FIGURES)
        assert len(scores["psnr_first"]) == 4
        assert len(scores["psnr"]) == len(scores["ssim_static"]) == 4 * (FRAMES - 1)
        means = {figure: np.mean(values) for figure, values in scores.items()}
        assert means["psnr_first"] > 26
        assert means["psnr"] > means["psnr_first"] - 2
        assert means["psnr_static"] < means["psnr"] - 3
        assert means["ssim_static"] < means["ssim"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny.e4d")


def test_a_bundle_is_scored_on_every_sequence(world, bundle):
    """Random networks: worse than Gaussians that stand still, and the same each time."""
    told: list[tuple[int, int]] = []
    with edge4d.load(bundle, backend="onnxruntime") as pipeline:
        options = {"frames": 2, "steps": 2}
        figures = evaluate_objects(pipeline, world, **options, progress=lambda *step: told.append(step))
        assert told == [(1, 2), (2, 2)]
        assert figures == evaluate_objects(pipeline, world, **options)
        with pytest.raises(InvalidWorld, match="frames"):
            evaluate_objects(pipeline, world, frames=FRAMES + 1)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["psnr"] < figures["psnr_static"] < figures["psnr_first"]
    context = {name: value for name, value in figures.items() if name not in FIGURES}
    assert context == {
        "bundle": "tiny",
        "world": "animals",
        "count": 2,
        "seed": SEED,
        "frames": 2,
        "fps": 4.0,
        "size": f"{SIZE}x{SIZE}",
        "precision": "fp32",
        "backend": "onnxruntime",
    }


def test_the_command_line_scores_objects_on_white(world, bundle, capsys):
    command = ["evaluate", str(bundle), "--data", str(world.folder), "--frames", "2", "--backend", "onnxruntime"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--json", "-"])
    assert not stop.value.code
    figures = json.loads(capsys.readouterr().out)
    assert set(FIGURES) < set(figures)
    assert figures["world"] == "animals"
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--background", "0,0,0"])
    assert stop.value.code == 2
