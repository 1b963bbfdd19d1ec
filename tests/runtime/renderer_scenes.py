"""Scenes of every kind for renderers' tests, and the bars that renderers are held to."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge4d.runtime.camera import Camera
from edge4d.runtime.gaussians import Activation
from edge4d.runtime.motion import Delta, Poly
from edge4d.runtime.renderer import Frame, Renderer
from edge4d.runtime.scene import Scene4D

CAMERA = Camera.from_fov(320, 192, 60.0)
GROUPS = 6


def scene(count: int = 20_000, seed: int = 0, *, coefficients: int = 0, **options: Any) -> Scene4D:
    """Gaussians of some pixels at 3 to 20 m, filling the view of CAMERA and a little more."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(3, 20, count)
    x, y = rng.uniform(-0.7, 0.7, count) * z, rng.uniform(-0.45, 0.45, count) * z
    colors = rng.uniform(0, 1, (count, 3)) if not coefficients else rng.normal(0, 0.3, (count, coefficients, 3))
    defaults: dict[str, Any] = {
        "means": np.stack([x, y, z], -1),
        "quats": rng.normal(size=(count, 4)),
        "scales": rng.uniform(0.5, 3, (count, 3)) * z[:, None] / CAMERA.K[0, 0],
        "opacities": rng.uniform(0.05, 0.95, count),
        "colors": colors,
    }
    arrays = {name: np.asarray(array, np.float32) for name, array in defaults.items()}
    groups = rng.integers(0, GROUPS, count).astype(np.int32)
    return Scene4D(**{**arrays, "groups": groups, "camera": CAMERA, "background": (0.1, 0.2, 0.3), **options})


def poly(seed: int = 1) -> Poly:
    rng = np.random.default_rng(seed)
    shapes = ((GROUPS, 3), (GROUPS, 2, 3), (GROUPS, 2, 3))
    return Poly(*(np.asarray(rng.normal(0, 0.3, shape), np.float32) for shape in shapes))


def delta(count: int, names: dict[str, int], size: float, seed: int = 2, **settings: Any) -> Delta:
    rng = np.random.default_rng(seed)
    layout, channels = {}, 0
    for name, width in names.items():
        layout[name] = (channels, channels + width)
        channels += width
    data = (size * rng.normal(size=(5, count, channels))).astype(np.float16)
    return Delta(np.linspace(0.0, 1.0, 5), data, layout, **settings)


def raw_scene() -> Scene4D:
    """As 4D generators store them: raw scales and opacities, which move before they are activated."""
    canonical = scene()
    scales = np.log(canonical.scales)
    opacities = np.log(canonical.opacities / (1 - canonical.opacities))
    names = {"means": 3, "scales": 3, "quats": 4, "colors": 3, "opacities": 1}
    return scene(
        scales=scales.astype(np.float32),
        opacities=opacities.astype(np.float32),
        activation=Activation("exp", "sigmoid"),
        motion=(delta(20_000, names, 0.05, domain="raw"),),
    )


SCENES = {
    "static": lambda: scene(),
    "static harmonics": lambda: scene(coefficients=9, antialiased=True, eps2d=0.1),
    "static with activations": lambda: raw_scene().without_motion(),
    "polynomial": lambda: scene(motion=(poly(),)),
    "differences before activations": raw_scene,
    "differences of some, then a polynomial": lambda: scene(
        coefficients=4,
        motion=(
            delta(500, {"colors": 3, "quats": 4}, 0.2, ids=np.arange(0, 20_000, 40, dtype=np.int32)),
            delta(20_000, {"quats": 4}, 1.0, rotation="mul_left", interpolation="hold"),
            poly(),
        ),
    ),
}


def view(x: float = 0.3, z: float = -0.2, camera: Camera = CAMERA) -> Camera:
    pose = np.eye(4)
    pose[0, 3], pose[2, 3] = x, z
    return camera.with_pose(pose)


def assert_parity(ours: Frame, expected: Frame) -> None:
    """CONVENTIONS.md's bars: at most 2e-4 off on 99.9 % of the pixels (others lie on a threshold), 1e-5 on average."""
    for name in ("image", "alpha", "depth"):
        got, wanted = (np.asarray(getattr(frame, name), np.float64) for frame in (ours, expected))
        # Depth is in metres: its float32 rounding grows with its size.
        error = np.abs(got - wanted) / (np.maximum(1, wanted) if name == "depth" else 1)
        assert error.mean() <= 1e-5, f"{name}: mean error {error.mean():.3g}"
        assert np.mean(error > 2e-4) <= 1e-3, f"{name}: {np.mean(error > 2e-4):.3%} of the values are off"
    assert ours.stats[1] == expected.stats[1]


def assert_frames_under_way_stand(renderer: Renderer) -> None:
    """Frames that were submitted while others were drawn are those that are drawn alone."""
    xs = np.linspace(-0.5, 0.5, 40).tolist()
    expected = [renderer.render(view(x), x) for x in xs]
    renderer.submit(view(xs[0]), xs[0])
    for k, wanted in enumerate(expected):
        if k + 1 < len(xs):
            renderer.submit(view(xs[k + 1]), xs[k + 1])
        for got, same in zip(renderer.fetch(), wanted):
            np.testing.assert_array_equal(got, same)
