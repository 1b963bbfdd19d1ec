"""Small scenes for the operators' tests, and the bars that kernels are held to."""

from __future__ import annotations

import math

import numpy as np

from edge4d.kernels import cpu, reference
from edge4d.kernels.reference import Rasterization

WIDTH, HEIGHT = 64, 48
NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "background")


def random_scene(
    seed: int, count: int = 300, *, batch: int = 1, cameras: int = 1, channels=3, sh_degree: int = -1, spread=0.8
):
    """Gaussians of mixed shapes in front of cameras that look at them, by operator input."""
    rng = np.random.default_rng(seed)
    coefficients = () if sh_degree < 0 else ((sh_degree + 1) ** 2,)
    colors = rng.uniform(0, 1, (batch, count, *coefficients, channels))
    scene = {
        "means": rng.normal([0, 0, 4], [1.2, 0.9, 1], (batch, count, 3)),
        "quats": rng.normal(size=(batch, count, 4)),
        "scales": np.exp(rng.normal(-2.5, spread, (batch, count, 3))),
        "opacities": rng.uniform(0, 1, (batch, count)),
        "colors": colors if sh_degree < 0 else (colors - 0.5) * 0.8,
        "viewmats": np.reshape([viewmat(rng) for _ in range(batch * cameras)], (batch, cameras, 4, 4)),
        "Ks": np.tile(intrinsics(), (batch, cameras, 1, 1)),
        "background": 0.1 * np.arange(1, channels + 1),
    }
    return {name: np.asarray(array, np.float32) for name, array in scene.items()}


def viewmat(rng) -> np.ndarray:
    """A pose near the origin, turned by up to a few degrees."""
    pose = np.eye(4)
    pose[:3, :3] = reference.rotation_from_quat(np.array([[1, *rng.uniform(-0.1, 0.1, 3)]]))[0]
    pose[:3, 3] = rng.uniform(-0.3, 0.3, 3)
    return pose


def intrinsics(focal: float = 60.0, cx: float = WIDTH / 2, cy: float = HEIGHT / 2) -> np.ndarray:
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])


def one_gaussian(mean=(0, 0, 2), scale=(0.1, 0.1, 0.1), opacity=0.5, color=(1, 0.5, 0.25), quat=(1, 0, 0, 0), **inputs):
    """One Gaussian before a camera at the origin, background black."""
    scene = {
        "means": [[mean]],
        "quats": [[quat]],
        "scales": [[scale]],
        "opacities": [[opacity]],
        "colors": [[color]],
        "viewmats": [[np.eye(4)]],
        "Ks": [[intrinsics()]],
        "background": np.zeros(len(color)),
        **inputs,
    }
    return {name: np.asarray(array, np.float32) for name, array in scene.items()}


def select(scene, gaussians=slice(None), batch=slice(None), cameras=slice(None)):
    """Some of a scene's Gaussians, batch entries and cameras."""
    picked = {name: scene[name][batch][:, gaussians] for name in NAMES[:5]}
    return {**scene, **picked, "viewmats": scene["viewmats"][batch, cameras], "Ks": scene["Ks"][batch, cameras]}


def halved(scene):
    """The scene with its Gaussians stored in float16."""
    return {**scene, **{name: scene[name].astype(np.float16) for name in NAMES[:5]}}


def assert_same(first, second) -> None:
    """The same bits."""
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def psnr(image: np.ndarray, expected: np.ndarray) -> float:
    """In decibels, of values whose peak is 1."""
    error = np.mean((image.astype(np.float64) - expected) ** 2)
    return math.inf if error == 0 else -10 * math.log10(error)


def draw_cpu(scene, width=WIDTH, height=HEIGHT, **attributes):
    return cpu.gaussian_rasterize(*(scene[name] for name in NAMES), width=width, height=height, **attributes)


def draw_twin(scene, width=WIDTH, height=HEIGHT, **attributes):
    return reference.gaussian_rasterize(*(scene[name] for name in NAMES), width=width, height=height, **attributes)


def threshold_pixels(monkeypatch, scene, **attributes) -> np.ndarray:
    """Pixels [B, V, H, W] where a rounding error decides whether a Gaussian counts: the twin itself changes its mind.

    Alpha against 1/255 within 1e-4 of it, transmittance against 1e-4 within 1 %: far more than float32's error, and
    still few pixels.
    """
    plain = draw_twin(scene, **attributes)
    undecided = np.zeros(plain.alpha.shape[:-1], bool)
    for name, change in (("ALPHA_MIN", 1e-4), ("TRANSMITTANCE_MIN", 1e-2)):
        for factor in (1 - change, 1 + change):
            with monkeypatch.context() as patch:
                patch.setattr(reference, name, getattr(reference, name) * factor)
                nudged = draw_twin(scene, **attributes)
            undecided |= (np.abs(nudged.alpha - plain.alpha) > 1e-7)[..., 0]
    return undecided


def assert_parity(draw, monkeypatch, scene, **attributes) -> None:
    """The bars of CONVENTIONS.md: max 2e-4 off the thresholds, those at most 0.1 % of the pixels; mean 1e-5."""
    ours, twin = draw(scene, **attributes), draw_twin(scene, **attributes)
    np.testing.assert_array_equal(ours.stats[..., :2], twin.stats[..., :2])
    far_off = pixels_far_off(ours, twin)
    if far_off.any():
        undecided = threshold_pixels(monkeypatch, scene, **attributes)
        assert not (far_off & ~undecided).any(), f"{(far_off & ~undecided).sum()} pixels off without a threshold"
        assert far_off.mean() <= 1e-3, f"{far_off.mean():.2%} of the pixels are on a threshold"


def pixels_far_off(ours: Rasterization, expected: Rasterization) -> np.ndarray:
    """Pixels [B, V, H, W] more than 2e-4 off in any output that both have; no output may be 1e-5 off on average."""
    far_off = np.zeros(1, bool)
    for name in ("image", "alpha", "depth"):
        got, wanted = getattr(ours, name).astype(np.float64), getattr(expected, name).astype(np.float64)
        if got.size == 0:
            continue
        # Depth is in metres: its float32 rounding grows with its size.
        size = np.maximum(1, np.abs(wanted)) if name == "depth" else 1
        error = np.abs(got - wanted) / size
        assert error.mean() <= 1e-5, f"{name}: mean error {error.mean():.3g}"
        far_off = far_off | (error > 2e-4).any(-1)
    return far_off
