"""Pixel-to-4D: from one photograph to a scene, in one pass.

photograph → perceive, readout → depth, instance ids      each may be given by the user instead
           → core, lift        → Gaussians per pixel, and a motion polynomial in time per instance
           → Scene4D

Large bundles have a stage `dino` before `core`. `readout` and `lift` are arithmetic in float32, whatever the networks'
precision.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.backends import Backend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import InvalidPicture, InvalidRequest, StageNotInBundle
from edge4d.runtime.example_inputs import picture
from edge4d.runtime.motion import Poly
from edge4d.runtime.photo import Photo, read_photo
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.systems.pipeline import Pipeline, Tensors
from edge4d.runtime.timings import Timings

if TYPE_CHECKING:
    from edge4d.runtime.systems.pixel_to_4d_live import LivePixelTo4D

PathLike = Union[str, "os.PathLike[str]"]

SCENE = ("means", "quats", "scales", "opacities", "colors", "groups", "centres", "linear", "angular")
"""The tensors that a scene is made of."""

PERCEIVED = ("depth", "instances")
"""The tensors that stages make unless the user has them."""

MIN_OPACITY = 1.0 / 255.0  # below it no pixel changes: the rasterizer culls there

_EXAMPLE_DEPTH = 8.0  # metres, for bundles that cannot see it


def perceives(bundle: Bundle) -> bool:
    """Whether networks of its own see depth and instances."""
    return not bundle.inputs.intersection(PERCEIVED)


class PixelTo4D(Pipeline):
    """A bundle of this system, ready to generate. Its attributes are those of every `Pipeline`."""

    trajectory = "drive"

    def __init__(self, bundle: Bundle, backend: Backend, precision: str) -> None:
        super().__init__(bundle, backend, precision)
        bundle.stage("core").graph(precision)  # a precision that is not there is said at once

    def generate(
        self,
        photo: Union[PathLike, NDArray[Any]],
        *,
        depth: Union[PathLike, NDArray[Any], None] = None,
        depth_scale: Optional[float] = None,
        instances: Union[PathLike, NDArray[Any], None] = None,
        intrinsics: Optional[Sequence[float]] = None,
        fov: Optional[float] = None,
        seed: Optional[int] = None,
        temperature: Optional[float] = None,
        size: Optional[tuple[int, int]] = None,
        background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Scene4D:
        """The scene of a photograph, in metres, in the frame of its camera, with t = 0 at the photograph.

        Args:
            photo, depth, depth_scale, instances, intrinsics, fov: see `edge4d.runtime.photo.read_photo`. Depth and
                instances that are not given are predicted. Instance ids may be any numbers; what has an id can move.
            seed: which of the plausible motions; without it, the most likely one.
            temperature: how far the motions that seeds choose may differ: 0 not at all, 1 (with a seed) as in training.
            size: (width, height) at which the network sees the photograph; the bundle's default without it.
            background: RGB in 0..1 behind the scene, and behind a transparent photograph.

        Raises:
            InvalidPicture, InvalidRequest: an argument that cannot be used.
            StageNotInBundle: the bundle lacks a network for this.
            EngineFailed: a network could not be run.
        """
        self.timings = Timings()
        size = self._checked_size(size)
        with self.timings.stage("read") as stage:
            seen = read_photo(
                photo,
                size,
                depth=depth,
                depth_scale=depth_scale,
                instances=instances,
                intrinsics=intrinsics,
                fov=fov,
                background=background,
            )
            stage.record({"image": seen.image})
        self.camera_source = seen.camera_source
        tensors = self.network_inputs(seen, seed, temperature)
        for name in self.stages_for(tensors):
            tensors = {**self._run(name, tensors), **tensors}
        with self.timings.stage("scene") as stage:
            scene = self._scene(tensors, seen, background)
            stage.record({"means": scene.means})
        return scene

    def example_scene(self, size: Optional[tuple[int, int]] = None) -> Scene4D:
        size = self._checked_size(size)
        image, instances = picture(*size)
        if perceives(self.bundle):
            return self.generate(image, size=size)
        depth = np.full(instances.shape, _EXAMPLE_DEPTH, np.float32)
        return self.generate(image, size=size, depth=depth, instances=instances)

    def live(
        self, size: Optional[tuple[int, int]] = None, *, predict: bool = True, stream: Optional[object] = None
    ) -> LivePixelTo4D:
        """The same on the GPU alone, for photographs that follow each other: a scene that never leaves it.

        Args:
            size: (width, height) at which the network sees photographs; the bundle's default without it.
            predict: depth and instances; else every photograph comes with both.
            stream: where the networks run: one of cuda-bindings, CuPy, PyCUDA or torch; a new one without it.

        Raises:
            BackendUnavailable: the backend is not TensorRT.
            InvalidRequest: the network cannot see pictures of this size.
            EngineNotBuilt: TensorRT refused a graph.
        """
        from edge4d.runtime.systems.pixel_to_4d_live import LivePixelTo4D  # here, for it needs a GPU's libraries

        return LivePixelTo4D(self, self._checked_size(size), predict=predict, stream=stream)

    # --- the chain ----------------------------------------------------------------------------------------------------

    def network_inputs(self, seen: Photo, seed: Optional[int], temperature: Optional[float]) -> Tensors:
        """What the first networks take: image [1,3,H,W], intrinsics [1,4], noise, and of depth [1,1,H,W] and instances
        [1,H,W] what the user gave.

        Raises:
            InvalidPicture, InvalidRequest: see `generate`.
        """
        size = seen.camera.width, seen.camera.height
        tensors: Tensors = {
            "image": np.ascontiguousarray(seen.image.transpose(2, 0, 1)[None]),
            "intrinsics": np.array([seen.camera.intrinsics], np.float32),
            "noise": self._noise(size, seed, temperature),
        }
        if seen.depth is not None:
            tensors["depth"] = seen.depth[None, None]
        if seen.instances is not None:
            tensors["instances"] = self._checked_instances(seen.instances)[None]
        return tensors

    def stages_for(self, given: Collection[str]) -> list[str]:
        """The stages that make a scene of these tensors, in their order.

        Raises:
            InvalidRequest: nothing makes depth or instances.
            StageNotInBundle: nothing makes another tensor.
        """
        names, missing = self.bundle.leading_to(SCENE, given)
        if missing.intersection(PERCEIVED):
            raise InvalidRequest(
                f"The bundle '{self.bundle.name}' cannot see depth and instances by itself.",
                note=f"Its stages are {', '.join(self.bundle.stages)}.",
                hint="Give both: --depth FILE --instances FILE.",
            )
        if missing:
            raise StageNotInBundle(
                f"The bundle '{self.bundle.name}' lacks a stage.",
                note=f"None of its stages, {', '.join(self.bundle.stages)}, makes {', '.join(sorted(missing))}.",
                hint="Export the bundle again, with all of its networks.",
            )
        return names

    def _scene(self, tensors: Tensors, seen: Photo, background: tuple[float, float, float]) -> Scene4D:
        made = {name: tensors[name][0] for name in SCENE}
        kept = made["opacities"] >= MIN_OPACITY
        means, quats, scales, opacities, colors, groups = (made[name][kept] for name in SCENE[:6])
        config = self.bundle.config
        return Scene4D(
            means=means,
            quats=quats,
            scales=scales,
            opacities=opacities,
            colors=colors,
            groups=groups,
            camera=seen.camera,
            motion=(Poly(made["centres"], made["linear"], made["angular"]),),
            t1=(config["frames"] - 1) / config["fps"],
            fps=config["fps"],
            background=background,
            source=self.bundle.name,
        )

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _noise(self, size: tuple[int, int], seed: Optional[int], temperature: Optional[float]) -> NDArray[np.float32]:
        """temperature · N(0, 1) in the shape that the core takes, for photographs of this (width, height).

        Raises:
            InvalidRequest: a seed or temperature that cannot be used.
        """
        if temperature is None:
            temperature = 0.0 if seed is None else 1.0
        if not 0.0 <= temperature <= 10.0:
            raise InvalidRequest("The temperature cannot be used.", note=f"It is {temperature}, from 0 to 10.")
        if seed is not None and not 0 <= seed < 2**63:
            raise InvalidRequest("The seed cannot be used.", note=f"It is {seed}, a whole number from 0 to 2^63 - 1.")
        shape = self.bundle.stage("core").input("noise").shape_at({"W": size[0], "H": size[1]})
        noise = np.random.default_rng(seed or 0).standard_normal(shape, np.float32)
        return np.asarray(np.float32(temperature) * noise, np.float32)

    def _checked_size(self, size: Optional[tuple[int, int]]) -> tuple[int, int]:
        """(width, height) that the network takes."""
        if size is None:
            width, height = self.bundle.config["size"]
            return int(width), int(height)
        axes = self.bundle.stage("core").axes
        if not (axes["W"].allows(size[0]) and axes["H"].allows(size[1])):
            nearest = f"{axes['W'].nearest(size[0])}x{axes['H'].nearest(size[1])}"
            raise InvalidRequest(
                "The network cannot see pictures of this size.",
                note=f"{size[0]}x{size[1]}; sides are multiples of {axes['W'].multiple_of}, "
                f"from {axes['W'].min}x{axes['H'].min} to {axes['W'].max}x{axes['H'].max}.",
                hint=f"The nearest is --size {nearest}; `edge4d render` can show the scene at any size.",
            )
        return size

    def _checked_instances(self, instances: NDArray[np.int32]) -> NDArray[np.int32]:
        """Ids below the bundle's number of groups; larger ones are renumbered from 1, in their order.

        Raises:
            InvalidPicture: there are more than the network can tell apart.
        """
        groups = int(self.bundle.config["groups"])
        if instances.max() < groups:
            return instances
        ids = np.unique(instances[instances > 0])
        if len(ids) >= groups:
            raise InvalidPicture(
                "There are more instances than the network can tell apart.",
                note=f"{len(ids)} ids in the crop, at most {groups - 1}.",
                hint="Set the ids of what does not move to 0.",
            )
        return np.where(instances > 0, np.searchsorted(ids, instances) + 1, 0).astype(np.int32)
