"""A bundle whose scenes can be computed by hand, a world that moves as it foresees, and where some tests run."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GROUPS = 8


@pytest.hookimpl(tryfirst=True)  # before any fixture looks for a GPU
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and reason_against_gpu():
        pytest.skip(reason_against_gpu())
    if item.get_closest_marker("rtx") and not all(map(importlib.util.find_spec, ("tensorrt_rtx", "polygraphy"))):
        pytest.skip("TensorRT-RTX and Polygraphy are not installed")


@functools.cache
def reason_against_gpu() -> str:
    """Why tests marked `gpu` cannot run here, or ""; that a library is there and does not load is no reason."""
    from edge4d.kernels import _library
    from edge4d.runtime.backends import cuda
    from edge4d.runtime.errors import BackendUnavailable

    if not _library.library_path(_library.CUDA_FILE_NAME).is_file():
        return "the CUDA kernels were not built"
    try:
        cuda.check_device()
    except BackendUnavailable as error:
        return " ".join(str(error).splitlines())
    return ""


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One for all tests, since TensorRT takes a minute for an engine; where $EDGE4D_CACHE is set, it lasts."""
    from edge4d.runtime.engine_cache import EngineCache

    return EngineCache(os.environ.get("EDGE4D_CACHE") or tmp_path_factory.mktemp("engines"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line; gives exit code, standard output and standard error."""
    from edge4d.runtime import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def write_bundle() -> Callable[..., Path]:
    """Writes a small bundle; see `_write_bundle`."""
    return _write_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, write_bundle: Callable[..., Path]) -> Path:
    """A bundle of the system pixel_to_4d without learned weights: one Gaussian per pixel of the photograph's colour.

    perceive: 6 m everywhere; pixels with red above 0.9 are instance 1.
    core: opacity 0.99, and 0.001 where blue is below 0.02; scale of half a pixel. Instance 1 moves by (1, 0, 0) m/s
    plus the mean of the noise, all others stand still.
    """
    pytest.importorskip("torch")
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "tiny.e4d", *_networks(), groups=GROUPS, largest=(512, 256)
    )


@pytest.fixture
def tiny_world(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A folder of two worlds of four frames, drawn by the bundle itself: it foresees them but for the 8 bits of PNG."""
    import edge4d

    folder = tmp_path / "world"
    names = ["0000-drive", "0001-pan"]
    with edge4d.load(tiny_bundle) as pipeline:
        for index, name in enumerate(names):
            _write_sequence(pipeline, folder / name, name.split("-")[1], index)
    description = {
        "format": 1,
        "world": "tiny",
        "seed": 7,
        "fps": 10.0,
        "frames": 4,
        "size": [64, 32],
        "sequences": names,
    }
    (folder / "world.json").write_text(json.dumps(description))
    return folder


def _write_sequence(pipeline, folder: Path, trajectory: str, index: int) -> None:
    from PIL import Image

    import edge4d

    rng = np.random.default_rng(index)
    photo = rng.integers(20, 200, (8, 16, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    photo[8:20, 16:32] = (250, 60, 60)
    scene = pipeline.generate(photo, intrinsics=(64, 64, 32, 16))
    video = edge4d.render(scene, trajectory, frames=4, fps=10)
    frames = list(video)
    (folder / "frames").mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(photo if number == 0 else frame.image).save(folder / "frames" / f"{number:04d}.png")
    Image.fromarray(photo).save(folder / "photo.png")
    np.save(folder / "cameras.npy", np.stack([camera.c2w for camera in video.path.cameras]))
    np.save(folder / "Ks.npy", video.path.Ks)
    np.save(folder / "times.npy", video.path.times)
    np.save(folder / "frames_depth.npy", np.stack([frame.depth for frame in frames]).astype(np.float16))
    reddish = [(frame.image[:, :, 0] > 220) & (frame.image[:, :, 1] < 100) for frame in frames]
    np.savez_compressed(folder / "frames_moving.npz", np.stack(reddish))


def _networks():
    """`perceive` and `core` of the tiny bundle."""
    import torch
    from torch import nn

    class Perceive(nn.Module):
        def forward(self, image, intrinsics):
            depth = image[:, :1] * 0 + 6 + 0 * intrinsics[:, :1, None, None]
            return depth, (image[:, 0] > 0.9).to(torch.int32)

    class Core(nn.Module):
        def forward(self, image, depth, instances, noise, intrinsics):
            height, width = image.shape[-2:]
            x = (torch.arange(width) + 0.5 - intrinsics[:, 2:3]) / intrinsics[:, :1]
            y = (torch.arange(height) + 0.5 - intrinsics[:, 3:4]) / intrinsics[:, 1:2]
            z = depth[:, 0]
            means = torch.stack([x[:, None] * z, y[:, :, None] * z, z], -1).flatten(1, 2)
            quats = torch.cat([torch.ones_like(means[..., :1]), torch.zeros_like(means)], -1)
            scales = (0.5 * z / intrinsics[:, :1, None]).flatten(1)[..., None].expand(-1, -1, 3)
            opacities = torch.where(image[:, 2] < 0.02, 0.001, 0.99).flatten(1)
            colors = image.flatten(2).transpose(1, 2)
            first = (torch.arange(GROUPS) == 1).to(image.dtype)[None, :, None]
            zeros = torch.zeros(1, GROUPS, 3) + 0 * noise.mean()
            velocity = first * (noise.mean() + torch.tensor([1.0, 0.0, 0.0]))
            linear = torch.stack([velocity, zeros], 2)
            groups = instances.flatten(1)
            return means, quats, scales, opacities, colors, groups, zeros, linear, torch.zeros_like(linear)

    return Perceive(), Core()


def _write_bundle(folder: Path, perceive, core, *, groups: int, largest: tuple[int, int], single=((), ())) -> Path:
    """A bundle of the system pixel_to_4d with one Gaussian per pixel and two channels of noise, for 64x32.

    Args:
        perceive, core: networks that take and give what those of the system do.
        largest: (width, height) that they see.
        single: for each, the modules that stay in float32.
    """
    import torch

    from edge4d.export.bundle_from_model import bundle_from_model
    from edge4d.export.stage import ExportStage
    from edge4d.runtime.bundle import Axis, TensorSpec
    from edge4d.runtime.camera import Camera

    def tensors(text: str) -> tuple[TensorSpec, ...]:
        specs = []
        for line in text.split(";"):
            name, *dims = line.split()
            dtype = "int32" if name in ("instances", "groups") else "float32"
            specs.append(TensorSpec(name, dtype, tuple(int(dim) if dim.isdigit() else dim for dim in dims)))
        return tuple(specs)

    def example(specs):
        def make(sizes):
            generator = torch.Generator().manual_seed(0)
            shapes = [tensor.shape_at(sizes) for tensor in specs]
            return tuple(
                torch.ones(shape, dtype=torch.int32)
                if tensor.dtype == "int32"
                else torch.rand(shape, generator=generator) + 0.5
                for tensor, shape in zip(specs, shapes)
            )

        return make

    axes = (Axis("H", 32, 32, largest[1], 32), Axis("W", 32, 64, largest[0], 32))
    image, intrinsics = "image 1 3 H W", "intrinsics 1 4"
    maps = "depth 1 1 H W; instances 1 H W"
    motion = f"centres 1 {groups} 3; linear 1 {groups} 2 3; angular 1 {groups} 2 3"
    gaussians = "means 1 H*W 3; quats 1 H*W 4; scales 1 H*W 3; opacities 1 H*W; colors 1 H*W 3; groups 1 H*W"
    seen, taken = tensors(f"{image}; {intrinsics}"), tensors(f"{image}; {maps}; noise 1 2 H/16 W/16; {intrinsics}")
    given = tensors(f"{gaussians}; {motion}")

    class Model:
        def stages(self) -> list[ExportStage]:
            return [
                ExportStage("perceive", perceive.eval(), seen, tensors(maps), axes, example(seen), single[0]),
                ExportStage("core", core.eval(), taken, given, axes, example(taken), single[1]),
            ]

    bundle_from_model(
        Model(),
        folder,
        system="pixel_to_4d",
        config={"size": [64, 32], "fps": 10, "frames": 5, "groups": groups, "layers": 1, "noise_channels": 2},
        camera=Camera.from_fov(64, 32, 60.0),
        licence="Apache-2.0",
        provenance={"training": "none"},
    )
    return folder
