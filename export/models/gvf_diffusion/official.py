"""The official checkpoints, as they lie in one folder: GVFDiffusion's and DINOv2's, and below it TRELLIS's `ckpts`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edge4d.export.checkpoints import load_checkpoint
from edge4d.export.models.gvf_diffusion.canonical import CanonicalGenerator
from edge4d.export.models.gvf_diffusion.fast import Standardise
from edge4d.export.models.gvf_diffusion.gaussian_decoder import official_key
from edge4d.export.models.gvf_diffusion.paper import Paper
from edge4d.runtime.bundle import sha256_of
from edge4d.runtime.errors import InvalidCheckpoint

DINO = "dinov2_vitl14_reg4_pretrain.pth"
DIT = "ema_diffusion_0.9999_500000.pt"
VAE = "ema_deformation_0.9999_200000.pt"
STATIC = ("static_mean.pt", "static_std.pt")
LATENTS = ("deformation_mean.pt", "deformation_std.pt")
MOTION = (DINO, DIT, VAE, *STATIC, *LATENTS)
"""What follows a video with given Gaussians."""

TRELLIS = "ckpts"
STRUCTURE_FLOW = f"{TRELLIS}/ss_flow_img_dit_L_16l8_fp16.safetensors"
STRUCTURE_DECODER = f"{TRELLIS}/ss_dec_conv3d_16l8_fp16.safetensors"
SLAT_FLOW = f"{TRELLIS}/slat_flow_img_dit_L_64l8p2_fp16.safetensors"
GAUSSIAN_DECODER = "ema_static_vae_0.9999_200000.pt"
GENERATOR = (STRUCTURE_FLOW, STRUCTURE_DECODER, SLAT_FLOW, GAUSSIAN_DECODER)
"""What makes Gaussians of a picture."""

LICENCES = {"GVFDiffusion": "not stated by its authors", "DINOv2": "Apache-2.0", "TRELLIS": "MIT"}


def has_generator(folder: Path) -> bool:
    """Whether TRELLIS's networks are in the folder."""
    return (folder / TRELLIS).is_dir()


def load_official(model: Paper, folder: str | Path) -> None:
    """Loads all networks and what they were normalised with, by the official names of files and weights, strictly.

    Raises:
        InvalidCheckpoint: files are missing or cannot be read, or their names or shapes are not the model's.
    """
    folder = Path(folder)
    files = MOTION if model.canonical is None else (*MOTION, *GENERATOR)
    _check_files(folder, files)
    load_checkpoint(model.dino, folder / DINO)
    for network, name in ((model.dit, DIT), (model.vae, VAE)):
        load_checkpoint(network, folder / name, rename=lambda key: key.removeprefix("module."))
    for standardise, names in ((model.static, STATIC), (model.latents, LATENTS)):
        _load_statistics(standardise, *(folder / name for name in names))
    if model.canonical is not None:
        _load_generator(model.canonical, folder)
    model.licence = "LicenseRef-GVFDiffusion AND Apache-2.0" + (" AND MIT" if model.canonical is not None else "")
    model.provenance = {
        "training": "official",
        "licences": LICENCES,
        "files": {name: sha256_of(folder / name) for name in files},
    }


def _check_files(folder: Path, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InvalidCheckpoint(
            f"'{folder}' lacks official files.",
            note=f"Missing: {', '.join(missing)}.",
            hint=f"Download them; without the folder {TRELLIS}, the bundle makes no Gaussians of pictures.",
        )


def _load_generator(model: CanonicalGenerator, folder: Path) -> None:
    load_checkpoint(model.structure_flow, folder / STRUCTURE_FLOW)
    load_checkpoint(model.structure_decoder, folder / STRUCTURE_DECODER)
    load_checkpoint(model.slat_flow, folder / SLAT_FLOW)
    load_checkpoint(model.gaussian_decoder, folder / GAUSSIAN_DECODER, rename=official_key)


def _load_statistics(standardise: Standardise, mean: Path, deviation: Path) -> None:
    for buffer, path in ((standardise.mean, mean), (standardise.deviation, deviation)):
        buffer.copy_(_tensor(path, buffer.numel()))
    if not (standardise.deviation > 0).all():
        raise InvalidCheckpoint(
            f"'{deviation}' has a deviation that is not positive.",
            note=f"The smallest is {standardise.deviation.min():g}.",
            hint="Download the file again.",
        )


def _tensor(path: Path, count: int) -> Tensor:
    """The only tensor of a file, as [count]; officially it has further axes of length one."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise InvalidCheckpoint(
            f"'{path}' cannot be read.",
            note=str(error).strip().partition("\n")[0][:500],
            hint="Download the file again.",
        ) from error
    if not isinstance(tensor, Tensor) or tensor.shape[-1:] != (count,) or tensor.numel() != count:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InvalidCheckpoint(f"'{path}' does not hold {count} numbers.", note=f"It holds {found}.")
    return tensor.float().flatten()
