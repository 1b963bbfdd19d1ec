"""GVFDiffusion's variation field with random weights, the same in every process: for its benchmark."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig
from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig

CONFIGS = {
    "paper": GvfDiffusionConfig(),
    "tiny": GvfDiffusionConfig(
        dit=VariationFieldConfig(dim=96, depth=2, heads=4, image_channels=64),
        vae=MotionVaeConfig(dim=96, depth=2, heads=4),
        latents=32,
        static_points=64,
        image_tokens=17,
        mesh_points=64,
    ),
}


def random_model(name: str) -> GvfDiffusion:
    """The model of a configuration; half holds its weights exactly."""
    model = GvfDiffusion(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            values.copy_(torch.from_numpy(random_weight(parameter, tuple(values.shape))))
    return model


def random_weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Of a parameter: ones for a norm's factors, a little for biases, and what keeps a layer's deviation at 1."""
    if name.endswith((".gamma", "norm3.weight", "norm4.weight")):
        return np.ones(shape, np.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    deviation = 0.02 if len(shape) == 1 else 1 / math.sqrt(shape[1])
    weight = deviation * random.standard_normal(shape, np.float32)
    return weight.astype(np.float16).astype(np.float32)
