"""Scenes to measure on: four that are made up like others' benchmarks, and two as a photograph gives them.

All rotations are random, colours uniform, opacities uniform in 0.05 to 0.95, the horizontal field of view is 60 degrees
and the camera stands at the origin, except in the photograph's own scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray
from report import ROOT

from edge4d.runtime.bundle import Bundle
from edge4d.runtime.camera import Camera
from edge4d.runtime.motion import Poly
from edge4d.runtime.samplers import CosineSchedule, Step, log_snr_uniform, multistep_plan
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.variation_field import query_from_gaussians

PAPER_SIZE = (832, 256)  # of photographs for Pixel-to-4D at the size of its paper
PAPER_GRID = (18, 59)  # rows and columns of DINOv2's features of them
GROUPS = 64  # that move; as many as the shipped bundle's scenes have
FOV = 60.0  # degrees across

FIELD_FRAMES, FIELD_GAUSSIANS, FIELD_EVALUATIONS = 32, 160_000, 18  # of GVFDiffusion at the size of its paper

Array = NDArray[Any]


class Workload(NamedTuple):
    """A scene seen by its own camera.

    Attributes:
        higs_ms: what NVIDIA's HiGS (gsplat 1.6.0: tile 8, RGB, fp16 attributes and output, the scene packed beforehand)
            took on an NVIDIA H200 in a measurement of its own, not in this run.
    """

    name: str
    scene: Scene4D
    higs_ms: Optional[float] = None


class PaperInputs(NamedTuple):
    """What Pixel-to-4D at the size of its paper takes, under the names of its stages' inputs."""

    image: Array
    depth: Array
    instances: Array
    features: Array
    noise: Array
    intrinsics: Array


def workloads(names: list[str], street: Optional[Path] = None) -> list[Workload]:
    """Those of `WORKLOADS` in `names`, all for an empty list.

    Args:
        street: a saved scene to take for the photograph's; without it the photograph goes through the shipped bundle.
    """
    makers = {
        "pixels 448x256": lambda: Workload("", pixel_aligned(448, 256), 0.271),
        "pixels 1024x320": lambda: Workload("", pixel_aligned(1024, 320), 0.554),
        "object 512x512": lambda: Workload("", sphere(), 0.239),
        "scene 1920x1080": lambda: Workload("", box(), 0.470),
        "pixels 832x256": lambda: Workload("", pixel_aligned(832, 256)),
        "street 448x256": lambda: Workload("", Scene4D.load(street) if street else photograph()),
    }
    return [maker()._replace(name=name) for name, maker in makers.items() if not names or name in names]


def pixel_aligned(width: int, height: int, layers: int = 5) -> Scene4D:
    """`layers` Gaussians on every pixel's ray, 0.5 to 1.5 pixels wide, over depths of 5 to 25 m that vary smoothly."""
    rng = np.random.default_rng(0)
    camera = Camera.from_fov(width, height, FOV)
    fx, fy, cx, cy = camera.intrinsics
    z = enlarged(5 + 20 * rng.uniform(size=(height // 8, width // 8)), 8)
    z = z * (1 + 0.05 * rng.normal(size=(layers, height, width)))
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    means = np.stack([(x - cx) / fx * z, (y - cy) / fy * z, z], -1).reshape(-1, 3)
    return scene(rng, camera, means, means[:, 2:] / fx * rng.uniform(0.5, 1.5, means.shape))


def paper_inputs(seed: int = 0) -> PaperInputs:
    """A photograph's: smooth colours, depths of 5 to 25 m, and eight things that may move, each a tenth as wide."""
    rng = np.random.default_rng(seed)
    width, height = PAPER_SIZE
    coarse = (height // 32, width // 32)
    instances = np.zeros((1, height, width), np.int32)
    for thing in range(8):
        left, top = thing * width // 8 + rng.integers(20), rng.integers(height // 2)
        instances[:, top : top + height // 3, left : left + width // 10] = thing + 1
    floats = (
        np.stack([enlarged(rng.uniform(size=coarse), 32) for _ in range(3)])[None],
        enlarged(5 + 20 * rng.uniform(size=coarse), 32)[None, None],
        rng.normal(size=(1, 1024, *PAPER_GRID)),
        rng.normal(size=(1, 16, height // 16, width // 16)),
        np.array([Camera.from_fov(width, height, FOV).intrinsics]),
    )
    image, depth, *rest = (array.astype(np.float32) for array in floats)
    return PaperInputs(image, depth, instances, *rest)


def field_inputs(bundle: Bundle, frames: int, count: int, seed: int = 0) -> dict[str, Array]:
    """What GVFDiffusion's variation field takes: features and noise of normal numbers, an object's Gaussians."""
    rng = np.random.default_rng(seed)
    sizes = {"T": frames, "N": count}
    tensors = {"images": "dit_cond", "static": "dit_cond", "positions": "dit_step", "x": "dit_step"}
    shapes = {name: bundle.stage(stage).input(name).shape_at(sizes) for name, stage in tensors.items()}
    around = sphere(count).evaluate(0.0)
    harmonics = rng.standard_normal((count, 1, 3), np.float32)
    gaussians = query_from_gaussians(around._replace(means=around.means - around.means.mean(0), colors=harmonics))
    chosen = rng.permutation(count)
    return {
        "images": rng.standard_normal(shapes["images"], np.float32),
        "static": gaussians[chosen[: shapes["static"][0]]],
        "positions": gaussians[chosen[: shapes["positions"][0]], :3],
        "noise": rng.standard_normal(shapes["x"], np.float32),
        "gaussians": gaussians,
    }


def field_plan() -> list[Step]:
    """The sampler's steps in it."""
    schedule = CosineSchedule()
    return multistep_plan(schedule, log_snr_uniform(schedule, FIELD_EVALUATIONS))


def sphere(count: int = 200_000) -> Scene4D:
    """An object: the surface of a sphere 1 m across, 1.5 m away, in Gaussians of 2 to 6 mm."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    means = 0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True) + [0, 0, 1.5]
    return scene(rng, Camera.from_fov(512, 512, FOV), means, rng.uniform(0.002, 0.006, means.shape))


def box(count: int = 1_000_000) -> Scene4D:
    """A box of 20 x 12 x 20 m that begins 4 m away, full of Gaussians whose sizes differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    means = rng.uniform([-10, -6, 4], [10, 6, 24], (count, 3))
    return scene(rng, Camera.from_fov(1920, 1080, FOV), means, np.exp(rng.normal(-4, 0.7, means.shape)))


def photograph() -> Scene4D:
    """examples/street.png through the shipped bundle, two Gaussians per pixel."""
    import edge4d

    with edge4d.load("street") as pipeline:
        made: Scene4D = pipeline.generate(ROOT / "examples" / "street.png")
        return made


def scene(rng: np.random.Generator, camera: Camera, means: Array, scales: Array) -> Scene4D:
    """The Gaussians, in groups that drift and turn slowly: after a tenth of a second the picture is much the same."""
    count = len(means)
    values = (means, rng.normal(size=(count, 4)), scales, rng.uniform(0.05, 0.95, count), rng.uniform(size=(count, 3)))
    linear, angular = rng.uniform(-0.02, 0.02, (2, GROUPS, 2, 3)).astype(np.float32)
    return Scene4D(
        *(array.astype(np.float32) for array in values),
        groups=rng.integers(0, GROUPS, count, dtype=np.int32),
        camera=camera,
        motion=(Poly(np.zeros((GROUPS, 3), np.float32), linear, angular),),
    )


def enlarged(coarse: Array, factor: int) -> Array:
    """`factor` times as many rows and columns, bilinear between the centres of the coarse cells."""
    for axis in (0, 1):
        places = (np.arange(factor * coarse.shape[axis]) + 0.5) / factor - 0.5
        before = np.floor(places).astype(int)
        after = np.minimum(before + 1, coarse.shape[axis] - 1)
        weight = np.expand_dims(places - before, 1 - axis)
        low, high = (np.take(coarse, np.maximum(at, 0), axis) for at in (before, after))
        coarse = low + weight * (high - low)
    return coarse
