"""The sampler's update on the GPU against the one on the host, which is itself tested against formulas.

The test named sanitize is small and uses plain memory of the exact sizes, as test_cuda_voxels.py says.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edge4d.kernels import _library, cuda
from edge4d.runtime.backends.cuda import DeviceArray, Graph, Stream
from edge4d.runtime.errors import InvalidRequest, InvalidTensor
from edge4d.runtime.samplers import CosineSchedule, Step, log_snr_uniform, multistep_plan, sample_multistep


def plan(steps: int) -> list[Step]:
    schedule = CosineSchedule()
    return multistep_plan(schedule, log_snr_uniform(schedule, steps))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


class Sampling:
    """A loop whose network says the same of every x."""

    def __init__(self, start: np.ndarray, steps: list[Step]) -> None:
        self.stream = Stream()
        self.start, self.x, self.data = (DeviceArray.from_numpy(start) for _ in range(3))
        self.said = DeviceArray.from_numpy(-start)
        self.steps = [DeviceArray.from_numpy(np.array(step, np.float32)) for step in steps]

    def enqueue(self) -> None:
        self.x.copy_from(self.start, self.stream)
        self.data.fill_bytes(0, self.stream)
        for step in self.steps:
            cuda.sampler_step(self.x, self.data, velocity=self.said, step=step, stream=self.stream)

    def result(self) -> np.ndarray:
        self.stream.synchronize()
        return self.x.to_numpy()


def expected(start: np.ndarray, steps: list[Step]) -> np.ndarray:
    return sample_multistep(lambda x, t: -start, start, steps)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1,), (255,), (2, 3, 257), (32, 512, 16)])
def test_a_loop_is_that_of_the_host(shape) -> None:
    sampling = Sampling(noise(*shape), plan(18))
    sampling.enqueue()
    # 18 updates of a few roundings each; products and sums are fused on the GPU.
    np.testing.assert_allclose(sampling.result(), expected(noise(*shape), plan(18)), rtol=0, atol=2e-5)


@pytest.mark.gpu
def test_a_recorded_loop_takes_other_numbers() -> None:
    start = noise(1000)
    sampling = Sampling(start, plan(12))
    with Graph(sampling.stream) as graph:
        sampling.enqueue()
    later = [step._replace(sigma=0.5 * step.sigma) for step in plan(12)]
    for array, step in zip(sampling.steps, later):
        array.copy_from(np.array(step, np.float32))
    graph.launch()
    np.testing.assert_allclose(sampling.result(), expected(start, later), rtol=0, atol=2e-5)


@pytest.mark.gpu
def test_sanitize_sampler_step() -> None:
    sampling = Sampling(noise(300), plan(2))
    sampling.enqueue()
    assert np.isfinite(sampling.result()).all()


@pytest.mark.gpu
def test_arrays_of_other_shapes_are_refused() -> None:
    arrays = {name: DeviceArray.from_numpy(noise(4, 5)) for name in ("x", "data", "velocity")}
    arrays["step"] = DeviceArray.from_numpy(noise(6))
    for name, shape in (("data", (4, 6)), ("velocity", (20,)), ("step", (5,))):
        wrong = {**arrays, name: DeviceArray.from_numpy(noise(*shape))}
        with pytest.raises(InvalidTensor, match=f"'{name}' has the wrong shape"):
            cuda.sampler_step(wrong.pop("x"), wrong.pop("data"), **wrong)
    none = arrays.pop("x").view((0,)), arrays.pop("data").view((0,))
    cuda.sampler_step(*none, velocity=arrays["velocity"].view((0,)), step=arrays["step"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"size": 8}, "another version"), ({"count": -1}, "negative"), ({}, "null"), ({"count": 2**62}, "null")],
)
def test_calls_that_cannot_work_are_refused(fields, words) -> None:
    """Before anything is launched: this needs no GPU."""
    try:
        library = _library.load_cuda()
    except Exception as error:
        pytest.skip(str(error))
    call = _library.SamplerStepCall(**{"size": ctypes.sizeof(_library.SamplerStepCall), "count": 1, **fields})
    with pytest.raises(InvalidRequest, match=words):
        _library.check(library, "sampler_step", library.edge4d_cuda_sampler_step(ctypes.byref(call), None))
