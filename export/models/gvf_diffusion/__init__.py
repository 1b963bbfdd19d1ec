"""GVFDiffusion (arXiv 2507.23785): how the Gaussians of one frame move in a clip. `build` makes a model by name."""

from __future__ import annotations

from pathlib import Path

from edge4d.export.checkpoints import checkpoint_metadata, load_checkpoint
from edge4d.export.models.gvf_diffusion.animals import ANIMALS, Animals, animals_config
from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig
from edge4d.export.models.gvf_diffusion.official import has_generator, load_official
from edge4d.export.models.gvf_diffusion.paper import PAPERS, Paper, PaperConfig
from edge4d.runtime.errors import InvalidRequest

CONFIGS = (*ANIMALS, *PAPERS)


def build(config: str, checkpoint: Path | None = None) -> Animals | Paper:
    """A model ready for export.

    Args:
        config: one of CONFIGS.
        checkpoint: a file of all weights; for PAPERS also a folder of official files (`official`), where the canonical
            generator is left out if its files are. Random weights without it.

    Raises:
        InvalidRequest: there is no such configuration.
        InvalidCheckpoint: the weights do not fit.
    """
    if config not in CONFIGS:
        raise InvalidRequest(f"There is no configuration '{config}'.", hint=f"Use one of: {', '.join(CONFIGS)}.")
    if config in PAPERS and checkpoint is not None and checkpoint.is_dir():
        paper = Paper(PAPERS[config], generates=has_generator(checkpoint))
        load_official(paper, checkpoint)
        return paper.eval()
    model = Animals(ANIMALS[config]) if config in ANIMALS else Paper(PAPERS[config])
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
        model.provenance = checkpoint_metadata(checkpoint)
    return model.eval()


__all__ = [
    "CONFIGS",
    "Animals",
    "GvfDiffusion",
    "GvfDiffusionConfig",
    "Paper",
    "PaperConfig",
    "animals_config",
    "build",
]
