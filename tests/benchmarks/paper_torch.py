"""generate_paper.py's worker on PyTorch: the network eager or compiled, its Gaussians drawn by gsplat 1.5.3.

Layout of the convolutions and frames per call of gsplat are those that are fastest here. Needs torch and gsplat, which
compiles itself when it is first imported.

    python tests/benchmarks/paper_torch.py WEIGHTS.safetensors INPUTS.npz
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workers import fastest, serve
from workloads import FOV, PAPER_SIZE

from edge4d.export.checkpoints import load_checkpoint
from edge4d.export.models.pixel_to_4d.gaussians import SceneLift, SceneTensors
from edge4d.export.models.pixel_to_4d.motion import multiply, quaternions, rotation_matrices
from edge4d.export.models.pixel_to_4d.paper import PaperConfig, PaperCore
from edge4d.runtime.camera import Camera
from edge4d.runtime.trajectories import trajectory

FRAMES, FPS = 24, 12.0
FLOAT32, EAGER = "float32", "eager"  # every other variant is a mode of torch.compile


class Network(nn.Module):
    """All that makes a scene: convolutions in `dtype`, the rest in float32, as in the bundle's fp16 variant."""

    def __init__(self, core: PaperCore, dtype: torch.dtype) -> None:
        super().__init__()
        self.core, self.lift, self.dtype = core.to(dtype), SceneLift(core.lift), dtype

    def forward(
        self, image: Tensor, depth: Tensor, instances: Tensor, features: Tensor, noise: Tensor, intrinsics: Tensor
    ) -> SceneTensors:
        decoded, motion = self.core(*(tensor.to(self.dtype) for tensor in (image, depth, features, noise)))
        outputs: SceneTensors = self.lift(decoded.float(), motion.float(), depth, instances, intrinsics)
        return outputs


def moved(outputs: SceneTensors, times: Tensor, rows: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Means [T,N,3] and quats [T,N,4] at all times.

    Args:
        times: [T] seconds.
        rows: of the Gaussians that move; None computes all, whose number never changes: what a compiler wants.
    """
    centres, linear, angular = (motion[0] for motion in (outputs.centres, outputs.linear, outputs.angular))
    t = times[:, None, None]
    shifts, turns = (part[:, 0] * t + part[:, 1] * t * t for part in (linear, angular))  # [T,M,3]
    means, quats, groups = outputs.means[0], outputs.quats[0], outputs.groups[0].long()
    if rows is not None:
        means, quats, groups = means[rows], quats[rows], groups[rows]
    arms = means - centres[groups]
    places = (rotation_matrices(turns)[:, groups] * arms[:, None]).sum(-1) + (centres + shifts)[:, groups]
    turned = multiply(quaternions(turns)[:, groups], quats.expand(len(times), -1, -1))
    if rows is None:
        return places, turned
    whole = [array.expand(len(times), -1, -1).clone() for array in (outputs.means, outputs.quats)]
    for array, part in zip(whole, (places, turned)):
        array[:, rows] = part
    return whole[0], whole[1]


def to_bytes(image: Tensor) -> Tensor:
    """0..1 to 0..255."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


class Film:
    """From a photograph's tensors to frames, eager or compiled."""

    def __init__(self, variant: str, weights: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        core = PaperCore(PaperConfig()).eval()
        load_checkpoint(core, weights)
        self._network = Network(core, torch.float32 if variant == FLOAT32 else torch.float16).cuda()
        self._compiled = variant not in (FLOAT32, EAGER)
        self._arrays = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self._staged = [torch.empty_like(array, pin_memory=True) for array in self._arrays.values()]
        self._inputs = [torch.empty_like(array, device="cuda") for array in self._staged]
        self._prepare_cameras()
        self._frames = torch.empty(FRAMES, *PAPER_SIZE[::-1], 3, dtype=torch.uint8, pin_memory=True)
        self._per_call = 1
        layout = self._faster_layout()
        self._run, self._move, self._to_bytes = self._network, moved, to_bytes
        if self._compiled:
            self._run = torch.compile(self._network, mode=variant, dynamic=False, fullgraph=True)
            self._move, self._to_bytes = (torch.compile(call, dynamic=False) for call in (moved, to_bytes))
        self._per_call = fastest({count: lambda count=count: self._film(count) for count in (1, FRAMES)})
        self.about = {
            "by": f"torch {torch.__version__}, {variant}{'' if variant == FLOAT32 else ' fp16'}, gsplat 1.5.3",
            "layout": str(layout).removeprefix("torch."),
            "frames_per_call": self._per_call,
        }
        self.calls = {"film": self.film, "scene": self.generate}

    def generate(self) -> None:
        self._outputs()
        torch.cuda.synchronize()

    def film(self) -> NDArray[np.uint8]:
        return self._film(self._per_call)

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        made = {name: value.cpu().numpy() for name, value in self._outputs()._asdict().items()}
        return {"frames": self.film(), **made}

    def _prepare_cameras(self) -> None:
        """viewmats [T,4,4], Ks [T,3,3] and times [T] on the GPU."""
        path = trajectory("drive", Camera.from_fov(*PAPER_SIZE, FOV), FRAMES, FPS)
        stacked = (np.stack([getattr(camera, name) for camera in path.cameras]) for name in ("viewmat", "K"))
        self._viewmats, self._Ks, self._times = (
            torch.from_numpy(np.asarray(array, np.float32)).cuda() for array in (*stacked, path.times)
        )

    def _faster_layout(self) -> torch.memory_format:
        """Of the convolutions; the network is left in it."""

        def run(layout: torch.memory_format) -> None:
            self._network.to(memory_format=layout)
            self._network(*self._inputs)
            torch.cuda.synchronize()

        layouts = (torch.contiguous_format, torch.channels_last)
        layout = fastest({layout: lambda layout=layout: run(layout) for layout in layouts})
        self._network.to(memory_format=layout)
        return layout

    def _outputs(self) -> SceneTensors:
        for staged, array, target in zip(self._staged, self._arrays.values(), self._inputs):
            staged.copy_(array)
            target.copy_(staged, non_blocking=True)
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the run before are not needed any more
        outputs: SceneTensors = self._run(*self._inputs)
        return outputs

    def _film(self, per_call: int) -> NDArray[np.uint8]:
        outputs = self._outputs()
        rows = None if self._compiled else outputs.groups[0].nonzero()[:, 0]
        means, quats = self._move(outputs, self._times, rows)
        still = [array[0] for array in (outputs.scales, outputs.opacities, outputs.colors)]
        for first in range(0, FRAMES, per_call):
            frames = slice(first, first + per_call)
            images = self._drawn(means[frames], quats[frames], still, frames)
            self._frames[frames].copy_(self._to_bytes(images), non_blocking=True)
        torch.cuda.synchronize()
        return self._frames.numpy()

    def _drawn(self, means: Tensor, quats: Tensor, still: list[Tensor], frames: slice) -> Tensor:
        """[T,H,W,3] of some frames in one call."""
        from gsplat import rasterization  # here, for it compiles itself if nobody has

        viewmats, Ks = self._viewmats[frames], self._Ks[frames]
        if len(means) == 1:
            arguments = (means[0], quats[0], *still, viewmats, Ks)
        else:
            many = (array.expand(len(means), *array.shape) for array in still)
            arguments = (means, quats, *many, viewmats[:, None], Ks[:, None])
        images: Tensor = rasterization(*arguments, *PAPER_SIZE, packed=False)[0]
        return images.reshape(len(means), *images.shape[-3:])


@torch.inference_mode()
def main() -> None:
    weights, path = sys.argv[1:]
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 is what the others are compared with
    arrays = dict(np.load(path))
    serve(lambda variant: Film(variant, weights, arrays))


if __name__ == "__main__":
    main()
