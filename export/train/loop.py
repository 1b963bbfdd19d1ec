"""What the trainers share: the device, the step of an optimizer, the average of weights, files to resume from."""

from __future__ import annotations

import math
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from edge4d.runtime.errors import BackendUnavailable, InvalidCheckpoint, InvalidRequest

Made = TypeVar("Made")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over the first 200 steps, then half a cosine to a fiftieth."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def training_device(name: str) -> torch.device:
    """The device to train on, set up for speed."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackendUnavailable(
            "There is no GPU to train on.", note=f"PyTorch {torch.__version__} sees none.", hint="Use --device cpu."
        )
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device(name)


def descend(optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], learned: list[nn.Parameter]) -> None:
    """One step down the sum of the terms; gradients longer than 2 are cut."""
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(learned, 2.0)
    optimizer.step()


def ahead(pool: Executor, make: Callable[[int], Made], steps: range, count: int) -> Iterator[Made]:
    """What is made for each step; `count` of them are begun before they are needed."""
    begun = deque(pool.submit(make, step) for step in steps[:count])
    for step in steps:
        made = begun.popleft().result()
        if step + count < steps.stop:
            begun.append(pool.submit(make, step + count))
        yield made


def resumed(
    path: Path, model: nn.Module, shadow: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, steps: int
) -> int:
    """Loads a `training.pt`; the step it is at.

    Raises:
        InvalidCheckpoint: it cannot be read, or is another network's.
        InvalidRequest: it has done all of `steps`.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as cause:
        raise InvalidCheckpoint(
            f"Training cannot go on from {path}.",
            note=str(cause)[:300],
            hint="Use the training.pt of the same network.",
        ) from cause
    if step >= steps:
        raise InvalidRequest(f"{path} has nothing left to do.", note=f"It is at step {step} of {steps}.")
    return step


@torch.no_grad()
def average(shadow: nn.Module, model: nn.Module, rate: float = 0.002) -> None:
    """Moves `shadow` a little towards `model`: the moving average of weights and statistics over about 1/rate steps."""
    for kept, new in zip(shadow.state_dict().values(), model.state_dict().values()):
        if kept.is_floating_point():
            kept.lerp_(new, rate)
        else:
            kept.copy_(new)


def save(out: Path, model: nn.Module, shadow: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes what training needs to go on; a run that is ended meanwhile leaves the file as it was."""
    state = {"model": model.state_dict(), "shadow": shadow.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step}, out / "training.pt.new")
    (out / "training.pt.new").replace(out / "training.pt")
