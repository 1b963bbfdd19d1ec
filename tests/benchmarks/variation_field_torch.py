"""variation_field.py's worker on PyTorch: the plain form, which keeps no keys and values; eager or compiled.

Eager, Gaussians are decoded so many at once as is fastest here; officially 8192.

    python tests/benchmarks/variation_field_torch.py CONFIG INPUTS.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from variation_field_model import random_model
from workers import fastest, serve
from workloads import field_plan

from edge4d.export.models.gvf_diffusion.motion_vae import MotionVae
from edge4d.runtime.variation_field import CHANNELS

FLOAT32, EAGER = "float32", "eager"  # every other variant is a mode of torch.compile
TOGETHER = (8192, 32_000)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Field:
    """Changes of Gaussians, eager or compiled."""

    def __init__(self, variant: str, config: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._variant, model = variant, random_model(config).to(DEVICE)
        self._inputs = {name: torch.from_numpy(array).to(DEVICE) for name, array in inputs.items()}
        self._inputs["static"] = model.static(self._inputs["static"])
        self._dit, self._restored, self._vae = self._compiled(model.dit), model.latents.restored, model.vae
        self._decode_part: Callable[..., Tensor] = self._compiled(decoded)
        self._latents_of: Callable[[Tensor], Tensor] = self._compiled(model.vae.latents)
        self._changes = torch.empty(len(inputs["noise"]), len(inputs["gaussians"]), CHANNELS, device=DEVICE)
        self._latents = self._inputs["noise"]
        self._plan = [(step, torch.tensor([step.model_time], device=DEVICE)) for step in field_plan()]
        self._together = TOGETHER[-1]  # of equal parts, for a compiler
        if variant in (FLOAT32, EAGER):
            self._together = fastest({count: lambda count=count: self._decode(count) for count in TOGETHER}, repeats=3)
        self.calls = {"sampling": self._sample, "decoding": self._decode, "whole": self._whole}
        self.about = {
            "by": f"torch {torch.__version__}, {variant}{'' if variant == FLOAT32 else ' fp16 autocast'}",
            "decoded_together": self._together,
        }

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        self._whole()
        return {"latents": self._latents.cpu().numpy(), "changes": self._changes.cpu().numpy()}

    def _compiled(self, call: Any) -> Any:
        if self._variant in (FLOAT32, EAGER):
            return call
        return torch.compile(call, mode=self._variant, dynamic=False)

    def _whole(self) -> None:
        self._sample()
        self._decode()

    def _sample(self) -> None:
        images, static, positions = (self._inputs[name][None] for name in ("images", "static", "positions"))
        x = self._inputs["noise"]
        before = torch.zeros_like(x)
        with self._precision():
            for step, t in self._plan:
                data = step.alpha * x - step.sigma * self._dit(x[None], t, images, static, positions)[0].float()
                x = step.keep * x + step.current * data + step.previous * before
                before = data
        self._latents = x
        finish()

    def _decode(self, together: int = 0) -> None:
        count = together or self._together
        parts = zip(self._inputs["gaussians"].split(count), self._changes.split(count, dim=1))
        with self._precision():
            latents = self._latents_of(self._restored(self._latents))
            for gaussians, changes in parts:
                changes.copy_(self._decode_part(self._vae, gaussians, latents))
        finish()

    def _precision(self) -> Any:
        return torch.autocast(DEVICE, torch.float16, enabled=self._variant != FLOAT32)


def decoded(vae: MotionVae, gaussians: Tensor, latents: Tensor) -> Tensor:
    """Changes [T,n,14] of Gaussians [n,14], as `MotionVae.decode` after its blocks."""
    queries = vae.queries(gaussians.expand(len(latents), -1, -1))
    changes: Tensor = vae.to_outputs(vae.decoder_cross_attn(queries, latents))
    return changes


def finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def main() -> None:
    config, inputs = sys.argv[1:]
    arrays = dict(np.load(inputs))
    serve(lambda variant: Field(variant, config, arrays))


if __name__ == "__main__":
    main()
