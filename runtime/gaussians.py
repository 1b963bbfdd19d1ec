"""A set of Gaussians as the rasterizer takes it, and how it comes from what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidScene

Float32Array = NDArray[np.float32]


class Gaussians(NamedTuple):
    """N activated Gaussians, float32, C-contiguous, without the batch axis that the operators have.

    Whoever gets a `Gaussians` must not write into its arrays: a scene shares between times what does not change.

    Attributes:
        means: [N, 3] metres.
        quats: [N, 4] wxyz.
        scales: [N, 3] metres along each axis, one standard deviation.
        opacities: [N] in [0, 1].
        colors: [N, 3] RGB, or [N, K, 3] coefficients of spherical harmonics with K = 1, 4, 9 or 16.
    """

    means: Float32Array
    quats: Float32Array
    scales: Float32Array
    opacities: Float32Array
    colors: Float32Array


@dataclass(frozen=True)
class Activation:
    """How stored (raw) values become what the rasterizer takes.

    Attributes:
        scale: "identity"; "exp": exp(raw + scale_bias); "softplus": sqrt(softplus(raw + scale_bias)^2 + scale_floor^2).
        opacity: "identity", or "sigmoid": sigmoid(raw + opacity_bias).
        scale_bias, opacity_bias: added before the activation.
        scale_floor: metres; the smallest scale that softplus gives (the kernel of mip-splatting).
        quat_bias: added to the raw quaternions before they are normalised; wxyz.

    GVFDiffusion is Activation("softplus", "sigmoid", -5.51946, -2.19722, 9e-4, (1, 0, 0, 0)); the PLY files of 3D
    Gaussian splatting are Activation("exp", "sigmoid"). Colours need none: RGB or SH follows from their shape.
    """

    scale: str = "identity"
    opacity: str = "identity"
    scale_bias: float = 0.0
    opacity_bias: float = 0.0
    scale_floor: float = 0.0
    quat_bias: Tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name, known in (("scale", ("identity", "exp", "softplus")), ("opacity", ("identity", "sigmoid"))):
            if getattr(self, name) not in known:
                raise InvalidScene(
                    f"The activation of the scene's {name} is unknown.",
                    note=f"it is {str(getattr(self, name))[:40]!r}; known are {', '.join(known)}.",
                    hint="The file may come from a newer edge4d.",
                )
        for name in ("scale_bias", "opacity_bias", "scale_floor"):
            object.__setattr__(self, name, checked_number(name, getattr(self, name), -1e4, 1e4))
        object.__setattr__(self, "quat_bias", checked_numbers("quat_bias", self.quat_bias, 4))

    def apply(self, raw: Gaussians) -> Gaussians:
        """Activated Gaussians from raw ones; quaternions get length one."""
        quats = raw.quats + np.array(self.quat_bias, np.float32) if any(self.quat_bias) else raw.quats
        return raw._replace(
            quats=normalized(quats), scales=self._scales(raw.scales), opacities=self._opacities(raw.opacities)
        )

    def _scales(self, raw: Float32Array) -> Float32Array:
        if self.scale == "identity":
            return raw
        biased = raw + np.float32(self.scale_bias)
        if self.scale == "exp":
            return np.asarray(np.exp(biased), np.float32)
        softplus = np.logaddexp(biased, np.float32(0.0))
        return np.asarray(np.hypot(softplus, np.float32(self.scale_floor)), np.float32)

    def _opacities(self, raw: Float32Array) -> Float32Array:
        if self.opacity == "identity":
            return raw
        # The logistic function by tanh, which saturates where exp would overflow.
        half = np.float32(0.5) * (raw + np.float32(self.opacity_bias))
        return np.asarray(np.float32(0.5) * (np.float32(1.0) + np.tanh(half)), np.float32)


def normalized(quats: Float32Array) -> Float32Array:
    """Quaternions [N, 4] of length one; those of length zero stay zero."""
    lengths = np.sqrt(np.einsum("nc,nc->n", quats, quats))[:, None]
    return np.asarray(quats / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def check_array(name: str, array: Any, dtypes: Tuple[str, ...], shape: Tuple[Optional[int], ...]) -> None:
    """Raise InvalidScene unless the array has one of the dtypes and this shape; None stands for any length."""
    found_dtype, found_shape = getattr(array, "dtype", type(array).__name__), np.shape(array)
    fits = len(found_shape) == len(shape) and all(want in (None, got) for want, got in zip(shape, found_shape))
    if isinstance(array, np.ndarray) and array.dtype.name in dtypes and fits:
        return
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    raise InvalidScene(
        f"The scene's {name} have the wrong type or shape.",
        note=f"found {found_dtype} {list(found_shape)}; expected {' or '.join(dtypes)} [{wanted}].",
        hint="Use np.ascontiguousarray(array, dtype=...).",
    )


def checked_number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number between low and high as a float."""
    if (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and low <= value <= high
    ):
        return float(value)
    raise InvalidScene(
        f"The scene's {name} cannot be used.",
        note=f"found {str(value)[:40]}; it must be a number from {low:g} to {high:g}.",
        hint=f"Give another {name}.",
    )


def checked_numbers(name: str, values: Any, count: int) -> Tuple[float, ...]:
    if not isinstance(values, (tuple, list, np.ndarray)) or len(values) != count:
        raise InvalidScene(
            f"The scene's {name} cannot be used.",
            note=f"found {str(values)[:80]}; it must be {count} numbers.",
            hint=f"Give another {name}.",
        )
    return tuple(checked_number(name, value, -1e4, 1e4) for value in values)
