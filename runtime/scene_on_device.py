"""A scene in GPU memory: copied there from a Scene4D, or made there by engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels import cuda
from edge4d.kernels.cuda import MAX_MOTION_TERMS, DeltaTerm, PolyTerm, StoredGaussians
from edge4d.runtime.backends.cuda import DeviceArray, Event, Stream
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.motion import Delta, Motion, Poly
from edge4d.runtime.scene import Scene4D


class SceneOnDevice:
    """What moves as it is stored, and what stands still as it is drawn. A `Renderer` draws it as it would a Scene4D.

    Args:
        about: all else that a scene has, from its camera to how it is drawn; its own Gaussians do not matter.
        stored: what moves, float32; None what stands still.
        still: what stands still, activated, [N, ...] float32 by name.
        groups: [N] int32, the motion group of each Gaussian.
        terms: of the motion, in their order.
        ready: when the arrays hold the scene; without it they do.

    Attributes:
        about, ready: as above. Whoever makes another scene in the same arrays sets them.
    """

    def __init__(
        self,
        about: Scene4D,
        stored: StoredGaussians,
        still: Mapping[str, DeviceArray],
        groups: DeviceArray,
        terms: Sequence[NamedTuple],
        ready: Optional[Event] = None,
    ) -> None:
        self.about, self.ready = about, ready
        self._stored, self._still, self._groups, self._terms = stored, dict(still), groups, tuple(terms)

    @classmethod
    def from_scene(cls, scene: Scene4D) -> SceneOnDevice:
        """A copy of a scene.

        Raises:
            InvalidRequest: it moves in a way that the motion kernel does not know.
            CudaError: there is not enough memory.
        """
        moving = _moving(scene.motion)
        still = scene.without_motion().evaluate(0.0)._asdict()
        return cls(
            scene,
            StoredGaussians(**{name: DeviceArray.from_numpy(getattr(scene, name)) for name in moving}),
            {name: DeviceArray.from_numpy(still[name]) for name in still if name not in moving},
            DeviceArray.from_numpy(scene.groups),
            [_on_device(term, len(scene)) for term in scene.motion],
        )

    def __len__(self) -> int:
        """N."""
        return self._groups.shape[0]

    @property
    def camera(self) -> Camera:
        return self.about.camera

    @property
    def t0(self) -> float:
        return self.about.t0

    @property
    def t1(self) -> float:
        return self.about.t1

    @property
    def background(self) -> tuple[float, float, float]:
        return self.about.background

    @property
    def sh_degree(self) -> int:
        return self.about.sh_degree

    @property
    def coefficients(self) -> int:
        """Numbers of a colour's channel; 0 for RGB."""
        return 0 if self.sh_degree < 0 else (self.sh_degree + 1) ** 2

    def check_time(self, t: float) -> None:
        """Raises InvalidRequest when t is not a finite number."""
        self.about.check_time(t)

    def room_for_moved(self) -> StoredGaussians:
        """Memory for one frame's Gaussians, as far as they move."""
        stored: Any = self._stored
        return StoredGaussians(*(None if array is None else DeviceArray(array.shape) for array in stored))

    def moved(self, time: DeviceArray, room: StoredGaussians, stream: Stream) -> tuple[Any, ...]:
        """Means, quats, scales, opacities and colors [1,N,...] at a time, once the stream has come to it."""
        activation = self.about.activation
        if self._terms:
            cuda.move_gaussians(
                self._stored,
                time=time,
                out=room,
                groups=self._groups,
                terms=self._terms,
                scale_activation=activation.scale,
                opacity_activation=activation.opacity,
                scale_bias=activation.scale_bias,
                opacity_bias=activation.opacity_bias,
                scale_floor=activation.scale_floor,
                quat_bias=activation.quat_bias,
                stream=stream,
            )
        arrays: Any = {**room._asdict(), **self._still}
        return tuple(arrays[name].view((1, *arrays[name].shape)) for name in Gaussians._fields)


def _moving(motion: tuple[Motion, ...]) -> set[str]:
    """The names of what changes with time."""
    if len(motion) > MAX_MOTION_TERMS:
        raise InvalidRequest(
            "The scene has more motion terms than the GPU applies.",
            note=f"It has {len(motion)}; at most {MAX_MOTION_TERMS} are possible.",
            hint='Bake several into one, or draw on the CPU: backend="onnxruntime".',
        )
    names: set[str] = set()
    for term in motion:
        names |= set(term.layout) if isinstance(term, Delta) else {"means", "quats"}
    return names


def _on_device(term: Motion, count: int) -> NamedTuple:
    if isinstance(term, Poly):
        return PolyTerm(*(DeviceArray.from_numpy(array) for array in (term.centres, term.linear, term.angular)))
    if not isinstance(term, Delta):
        raise InvalidRequest(
            "The GPU does not know a motion of the scene.",
            note=f"It is a {type(term).__name__}; known are Poly and Delta.",
            hint='Draw on the CPU: backend="onnxruntime".',
        )
    return DeltaTerm(
        DeviceArray.from_numpy(term.times),
        DeviceArray.from_numpy(term.data),
        {name: first for name, (first, _) in term.layout.items()},
        None if term.ids is None else DeviceArray.from_numpy(_rows(term.ids, count)),
        term.domain == "raw",
        term.rotation,
        term.interpolation,
    )


def _rows(ids: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """[count] the place of each Gaussian in `ids`, -1 where it is not among them."""
    rows = np.full(count, -1, np.int32)
    rows[ids] = np.arange(len(ids), dtype=np.int32)
    return rows
