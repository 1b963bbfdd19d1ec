"""The official checkpoints of GVFDiffusion, as they lie in one folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edge4d.export.checkpoints import load_checkpoint
from edge4d.export.models.gvf_diffusion.fast import Standardise
from edge4d.export.models.gvf_diffusion.model import GvfDiffusion
from edge4d.runtime.errors import InvalidCheckpoint

DIT = "ema_diffusion_0.9999_500000.pt"
VAE = "ema_deformation_0.9999_200000.pt"
STATIC = ("static_mean.pt", "static_std.pt")
LATENTS = ("deformation_mean.pt", "deformation_std.pt")


def load_official(model: GvfDiffusion, folder: str | Path) -> None:
    """Loads both networks and what they were normalised with, by the official names of files and weights, strictly.

    Raises:
        InvalidCheckpoint: a file is missing or cannot be read, or its names or shapes are not the model's.
    """
    folder = Path(folder)
    for network, name in ((model.dit, DIT), (model.vae, VAE)):
        load_checkpoint(network, folder / name, rename=lambda key: key.removeprefix("module."))
    for standardise, names in ((model.static, STATIC), (model.latents, LATENTS)):
        _load_statistics(standardise, *(folder / name for name in names))


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
            hint="The folder must hold the official files: " + ", ".join((DIT, VAE, *STATIC, *LATENTS)) + ".",
        ) from error
    if not isinstance(tensor, Tensor) or tensor.shape[-1:] != (count,) or tensor.numel() != count:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InvalidCheckpoint(f"'{path}' does not hold {count} numbers.", note=f"It holds {found}.")
    return tensor.float().flatten()
