"""variation_field.py's worker on TensorRT: all of it on the GPU. Needs no torch.

python tests/benchmarks/variation_field_tensorrt.py NAME.e4d INPUTS.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from workers import serve
from workloads import field_plan

from edge4d.runtime.backends.cuda import recorded
from edge4d.runtime.backends.tensorrt import TensorRtBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.variation_field_on_device import VariationFieldOnDevice


class Field:
    """Changes of Gaussians, in one precision of the bundle."""

    def __init__(self, bundle: str, precision: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        backend, (frames, *_), (count, _) = TensorRtBackend(), inputs["noise"].shape, inputs["gaussians"].shape
        self._inputs = inputs
        self._field = field = VariationFieldOnDevice(
            backend, Bundle.load(bundle), precision, frames=frames, gaussians=count, plan=field_plan()
        )
        field.run(inputs)  # so that each part has what the ones before it give
        parts = {"conditioning": field.condition, "sampling": field.sample, "decoding": field.decode}
        self.calls = {name: self._to_its_end(recorded(field.stream, part).launch) for name, part in parts.items()}
        self.calls["whole"] = self._to_its_end(field.launch)
        self.about = {"by": f"TensorRT {backend.target.version}, {precision}"}

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        changes = self._field.run(self._inputs)
        return {"latents": self._field.latents.to_numpy(), "changes": changes}

    def _to_its_end(self, launch: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            launch()
            self._field.stream.synchronize()

        return call


def main() -> None:
    bundle, inputs = sys.argv[1:]
    arrays = dict(np.load(inputs))
    serve(lambda precision: Field(bundle, precision, arrays))


if __name__ == "__main__":
    main()
