"""A bundle of GVFDiffusion with random weights, an asset, and videos of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.scene import Scene4D

PICTURE = 32
LATENTS, STATIC = 24, 48


def write_bundle(folder: Path) -> Path:
    """Networks that change Gaussians a little, at random; features are the pictures' patches."""
    import torch
    from torch import nn

    from edge4d.export.bundle_from_model import bundle_from_model
    from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
    from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig
    from edge4d.export.models.gvf_diffusion.specs import float32, normal_example
    from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig
    from edge4d.export.stage import ExportStage
    from edge4d.runtime.bundle import Axis

    config = GvfDiffusionConfig(
        dit=VariationFieldConfig(dim=48, depth=1, heads=4, image_channels=192),
        vae=MotionVaeConfig(dim=48, depth=1, heads=4),
        latents=LATENTS,
        static_points=STATIC,
        image_tokens=16,
        mesh_points=64,
        frames=(6, 8),
        gaussians=(256, 512),
    )

    class Patches(nn.Module):
        def forward(self, pictures):
            patches = pictures.unflatten(2, (4, 8)).unflatten(4, (4, 8)).permute(0, 2, 4, 1, 3, 5)
            return patches.flatten(3).flatten(1, 2)

    class Model:
        def __init__(self):
            torch.manual_seed(0)
            self.model = GvfDiffusion(config).eval()
            for parameter in self.model.parameters():  # what is zero at first would leave everything where it is
                if parameter.ndim == 1 or not parameter.abs().max():
                    nn.init.normal_(parameter, std=0.02)
            self.model.vae.to_outputs.weight.data *= 0.2
            self.model.vae.to_outputs.bias.data *= 0

        def stages(self):
            inputs = (float32("pictures", "T", 3, PICTURE, PICTURE),)
            outputs = (float32("images", "T", 16, 192),)
            axes = (Axis("T", 1, *config.frames),)
            image = ExportStage("image", Patches().eval(), inputs, outputs, axes, normal_example(inputs))
            return [image, *self.model.stages()]

    bundle_from_model(
        Model(),
        folder,
        system="gvf_diffusion",
        config={"fps": 10},
        camera=object_camera(64),
        licence="Apache-2.0",
        provenance={"training": "none"},
        precisions=["fp32"],
    )
    return folder


def write_tiny_checkpoint(path: Path) -> Path:
    """Random weights of the configuration `tiny`, whose canonical generator makes an object that can be seen."""
    import torch
    from torch import nn

    from edge4d.export.checkpoints import save_checkpoint
    from edge4d.export.models.gvf_diffusion import build

    torch.manual_seed(0)
    model = build("tiny")
    for parameter in model.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.05)
    generator = model.canonical
    generator.structure_decoder.out_layer[-1].bias.data -= 0.5  # most voxels are empty
    # Offsets, colours, scales, rotations, opacities of two Gaussians: as large as half a voxel, and opaque.
    generator.gaussian_decoder.out_layer.bias.data = torch.tensor([0.0] * 12 + [2.2] * 6 + [0.0] * 8 + [5.0] * 2)
    model.vae.to_outputs.weight.data *= 0.2
    save_checkpoint(model, path)
    return path


def asset() -> Gaussians:
    """Activated Gaussians of a body with a red head at +x and a blue flag on top, so that no two sides look alike."""
    rng = np.random.default_rng(0)
    parts = (
        ((0.0, 0.0, -0.1), (0.30, 0.15, 0.15), (0.45, 0.4, 0.3), 260),
        ((0.32, 0.0, 0.1), (0.1, 0.1, 0.1), (0.9, 0.1, 0.1), 120),
        ((-0.2, 0.08, 0.2), (0.05, 0.02, 0.2), (0.1, 0.2, 0.9), 120),
    )
    directions = [rng.standard_normal((count, 3)) for *_, count in parts]
    spheres = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in directions]
    means = np.concatenate([np.array(c) + np.array(r) * s for (c, r, _, _), s in zip(parts, spheres)])
    colours = np.concatenate([np.tile(colour, (count, 1)) for _, _, colour, count in parts])
    count = len(means)
    return Gaussians(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        scales=np.full((count, 3), 0.02, np.float32),
        opacities=np.full(count, 0.95, np.float32),
        colors=((colours - 0.5) / 0.28209479)[:, None].astype(np.float32),
    )


def pictures(gaussians: Gaussians, azimuth: float, frames: int, size: int = 96) -> np.ndarray:
    """[T,H,W,4]: the asset on nothing, going to the right by a hundredth each frame."""
    still = Scene4D(**gaussians._asdict(), groups=np.zeros(len(gaussians.means), np.int32), camera=object_camera(size))
    frame = Renderer(still, dtype="float32", backend="onnxruntime").render(object_camera(size, azimuth), 0.0)
    alpha = frame.alpha[..., None]
    straight = np.concatenate([frame.image / np.maximum(alpha, 1e-6), alpha], axis=2)
    whole = np.rint(255 * np.clip(straight, 0, 1)).astype(np.uint8)
    return np.stack([np.roll(whole, shift, axis=1) for shift in range(frames)])
