"""Pixel-to-4D (arXiv 2601.00678): one photograph to Gaussians that move. `build` makes a model by name."""

from __future__ import annotations

from pathlib import Path

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint
from edge4d.export.models.layers.dinov2 import DinoV2
from edge4d.export.models.pixel_to_4d.paper import Paper, PaperConfig
from edge4d.export.models.pixel_to_4d.street import STREET, TINY, Street, StreetConfig
from edge4d.runtime.errors import InvalidRequest

STREETS = {"street": STREET, "tiny": TINY}
CONFIGS = (*STREETS, "paper")


def street_config(name: str) -> StreetConfig:
    """The sizes of a network that can be trained. Raises InvalidRequest for every other name."""
    if name not in STREETS:
        raise InvalidRequest(f"The configuration '{name}' cannot be trained here.", hint=f"Use {' or '.join(STREETS)}.")
    return STREETS[name]


def build(config: str, checkpoint: Path | None = None) -> Street | Paper:
    """A model ready for export.

    Args:
        config: one of CONFIGS.
        checkpoint: weights by key name, strictly; random ones without it.

    Raises:
        InvalidRequest: there is no such configuration.
        InvalidCheckpoint: the weights do not fit.
    """
    if config not in CONFIGS:
        raise InvalidRequest(f"There is no configuration '{config}'.", hint=f"Use one of: {', '.join(CONFIGS)}.")
    model: Street | Paper = Street(STREETS[config]) if config in STREETS else Paper(PaperConfig(), DinoV2(252, 448))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, rename=lambda key: None if key.startswith("enc_vae.") else key)
        model.provenance = checkpoint_metadata(checkpoint)
    model.eval()
    return model


__all__ = ["CONFIGS", "Paper", "Street", "build", "street_config"]
