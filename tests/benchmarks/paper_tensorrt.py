"""generate_paper.py's worker on TensorRT: the network as an engine, its outputs drawn where they lie. Needs no torch.

python tests/benchmarks/paper_tensorrt.py NAME.e4d INPUTS.npz
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from workers import serve
from workloads import PAPER_SIZE

import edge4d
from edge4d.runtime.renderer import Renderer
from edge4d.runtime.systems.pixel_to_4d import SCENE
from edge4d.runtime.trajectories import CameraPath, trajectory


class Film:
    """From a photograph's tensors to frames, in one precision of the bundle."""

    def __init__(self, bundle: str, precision: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        pipeline = edge4d.load(bundle, backend="tensorrt", precision=precision)
        config = pipeline.bundle.config
        self._inputs = inputs
        self._live = pipeline.live(PAPER_SIZE, predict=False)
        self._path: CameraPath = trajectory("drive", self._live.scene.camera, config["frames"], config["fps"])
        self._renderer = Renderer(self._live.scene, backend="cuda", outputs=("image",))
        self._frames = np.zeros((len(self._path), *PAPER_SIZE[::-1], 3), np.uint8)
        self.about = {"by": f"TensorRT {pipeline.backend.target.version}, {precision}"}
        self.calls = {"film": self.film, "scene": self.generate}

    def generate(self) -> None:
        self._live.run(self._inputs)
        self._live.chain.stream.synchronize()

    def film(self) -> NDArray[np.uint8]:
        self._live.run(self._inputs)
        fetched = 0
        for camera, t in zip(self._path.cameras, self._path.times):
            self._renderer.submit(camera, float(t))
            if self._renderer.in_flight == Renderer.MAX_IN_FLIGHT:
                self._frames[fetched] = self._renderer.fetch().image
                fetched += 1
        self._frames[fetched] = self._renderer.fetch().image
        return self._frames

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        frames = self.film()
        return {"frames": frames, **{name: self._live.chain.outputs[name].to_numpy() for name in SCENE}}


def main() -> None:
    bundle, inputs = sys.argv[1:]
    arrays = dict(np.load(inputs))
    serve(lambda precision: Film(bundle, precision, arrays))


if __name__ == "__main__":
    main()
