"""The bundle that variation_field.py measures: GVFDiffusion from features on, 230 million random weights, in fp16.

Needs edge4d[export], and minutes: graphs are compared with PyTorch at a small size. Engines are best at 32 frames, or
with --fixed for no other number, as a compiler of the peer's sees them too.

    python tests/benchmarks/variation_field_bundle.py -o out/field.e4d [--config tiny] [--together 32000] [--fixed]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from variation_field_model import CONFIGS, random_model
from workloads import FIELD_FRAMES

from edge4d.export.bundle_from_model import bundle_from_model
from edge4d.export.models.gvf_diffusion.model import GvfDiffusion
from edge4d.export.stage import ExportStage
from edge4d.runtime.bundle import DESCRIPTION
from edge4d.runtime.object_views import object_camera
from edge4d.runtime.variation_field_on_device import STAGES

SMALL = {"T": 2, "N": 256}  # where graphs are compared with PyTorch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.e4d")
    parser.add_argument("--config", choices=CONFIGS, default="paper")
    parser.add_argument("--together", type=int, default=32_000, help="Gaussians that are decoded at once")
    parser.add_argument("--fixed", action="store_true", help="engines for the largest size alone")
    options = parser.parse_args()
    largest = {"T": FIELD_FRAMES, "N": options.together}
    bundle_from_model(
        FieldOnly(random_model(options.config), largest),
        options.output,
        system="gvf_diffusion",
        config={"fps": 10, "networks": options.config},
        camera=object_camera(512),
        licence="Apache-2.0",
        provenance={"weights": "random"},
        precisions=["fp16"],
    )
    best_at_their_largest(options.output / DESCRIPTION, fixed=options.fixed)
    print(options.output)


class FieldOnly:
    """The stages from features to changes, best at a small size."""

    def __init__(self, model: GvfDiffusion, largest: dict[str, int]) -> None:
        self._model, self._largest = model, largest

    def stages(self) -> list[ExportStage]:
        return [self._limited(stage) for stage in self._model.stages() if stage.name in STAGES]

    def _limited(self, stage: ExportStage) -> ExportStage:
        axes = tuple(
            dataclasses.replace(axis, opt=SMALL[axis.name], max=self._largest[axis.name]) for axis in stage.axes
        )
        return dataclasses.replace(stage, axes=axes)


def best_at_their_largest(path: Path, *, fixed: bool) -> None:
    """Engines are built for the size that is measured."""
    description = json.loads(path.read_text())
    for stage in description["stages"]:
        for axis in stage["axes"].values():
            axis["opt"] = axis["max"]
            axis["min"] = axis["max"] if fixed else axis["min"]
    path.write_text(json.dumps(description, indent=2) + "\n")


if __name__ == "__main__":
    main()
