"""Pixel-to-4D with nothing but photographs on their way to the GPU, and nothing but frames on their way back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from edge4d.kernels.cuda import PolyTerm, StoredGaussians
from edge4d.runtime.backends.cuda import Event, Stream
from edge4d.runtime.backends.tensorrt import TensorRtBackend
from edge4d.runtime.camera import Camera
from edge4d.runtime.chain import Chain
from edge4d.runtime.errors import BackendUnavailable, InvalidRequest
from edge4d.runtime.photo import read_photo
from edge4d.runtime.scene import Scene4D
from edge4d.runtime.scene_on_device import SceneOnDevice
from edge4d.runtime.systems.pixel_to_4d import PERCEIVED, SCENE

if TYPE_CHECKING:
    from edge4d.runtime.systems.pixel_to_4d import PixelTo4D

PathLike = Union[str, "os.PathLike[str]"]


class LivePixelTo4D:
    """Turns one photograph after the other into a scene that stays in GPU memory. Made by `PixelTo4D.live`.

    Attributes:
        size: (width, height) at which the network sees photographs.
        scene: the latest. It is the same object, in the same memory, for every photograph: a `Renderer` made of it once
            draws them all.
        chain: the networks, with their inputs and outputs.
    """

    def __init__(self, pipeline: PixelTo4D, size: tuple[int, int], *, predict: bool, stream: Optional[object]) -> None:
        if not isinstance(pipeline.backend, TensorRtBackend):
            raise BackendUnavailable(
                "Only TensorRT keeps scenes on the GPU.",
                note=f"The pipeline's backend is '{pipeline.backend.name}'.",
                hint='Load the bundle with backend="tensorrt".',
            )
        bundle, self.size = pipeline.bundle, size
        self._pipeline = pipeline
        given = bundle.inputs.difference(PERCEIVED) if predict else bundle.inputs.union(PERCEIVED)
        self.chain = Chain(
            pipeline.backend,
            bundle,
            pipeline.stages_for(given),
            pipeline.precision,
            {"W": size[0], "H": size[1]},
            stream=None if stream is None else Stream(stream),
        )
        self._done = Event()
        self.scene = self._scene_of_outputs()

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
    ) -> SceneOnDevice:
        """Begins the scene of a photograph, and returns: what draws it waits for it.

        It takes the place of the scene before, whose frames must have been fetched.

        Args:
            all: see `PixelTo4D.generate`. Depth and instances belong to a pipeline that does not predict them.

        Raises:
            InvalidPicture, InvalidRequest: an argument that cannot be used.
        """
        seen = read_photo(
            photo,
            self.size,
            depth=depth,
            depth_scale=depth_scale,
            instances=instances,
            intrinsics=intrinsics,
            fov=fov,
            background=self.scene.background,
        )
        self.run(self._pipeline.network_inputs(seen, seed, temperature))
        self.scene.about = replace(self.scene.about, camera=seen.camera)
        return self.scene

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """The same from the tensors that the networks take, by name."""
        taken = self.chain.inputs
        if set(inputs) != set(taken):
            raise InvalidRequest(
                "These are not the inputs of the live networks.",
                note=f"Given: {', '.join(sorted(inputs))}; taken: {', '.join(sorted(taken))}.",
                hint="What is predicted cannot be given: live(predict=False) takes depth and instances.",
            )
        self._done.synchronize()  # the run before may still read its inputs
        for name, array in inputs.items():
            taken[name][...] = array
        self.chain.launch()
        self._done.record(self.chain.stream)

    def _scene_of_outputs(self) -> SceneOnDevice:
        made = {name: self.chain.outputs[name] for name in SCENE}
        tensors = {name: array.view(array.shape[1:]) for name, array in made.items()}
        return SceneOnDevice(
            self._about(),
            StoredGaussians(means=tensors["means"], quats=tensors["quats"]),
            {name: tensors[name] for name in ("scales", "opacities", "colors")},
            tensors["groups"],
            [PolyTerm(tensors["centres"], tensors["linear"], tensors["angular"])],
            self._done,
        )

    def _about(self) -> Scene4D:
        config = self._pipeline.bundle.config
        no_row = np.zeros((0, 3), np.float32)
        return Scene4D(
            means=no_row,
            quats=np.zeros((0, 4), np.float32),
            scales=no_row,
            opacities=no_row[:, 0],
            colors=no_row,
            groups=np.zeros(0, np.int32),
            camera=Camera.from_fov(*self.size, 60.0),
            t1=(config["frames"] - 1) / config["fps"],
            fps=config["fps"],
            source=self._pipeline.bundle.name,
        )
