"""The variation field without the host, against the same stages through the host.

Where there is no GPU, its memory is the host's and its engines are ONNX Runtime's: what is tested is what is read and
written where, and in which order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
from gvf_bundle import LATENTS, STATIC
from hypothesis import given
from hypothesis import strategies as st

from edge4d.kernels import cuda as kernels
from edge4d.runtime import variation_field_on_device
from edge4d.runtime.backends import cuda
from edge4d.runtime.backends.cuda import DeviceArray
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.errors import InvalidBundle
from edge4d.runtime.samplers import CosineSchedule, Step, log_snr_uniform, multistep_plan, sample_multistep
from edge4d.runtime.variation_field_on_device import STAGES, VariationFieldOnDevice, parts

Arrays = dict[str, np.ndarray]


@given(st.integers(1, 2_000_000), st.integers(1, 70_000))
def test_parts_cover_all_gaussians(count, most) -> None:
    found = parts(count, most)
    covered = np.zeros(found.rows // 32, bool)
    for start in found.starts:
        assert start % 32 == 0
        covered[start // 32 : (start + found.size) // 32] = True
    assert covered.all()
    assert count <= found.rows < count + 32
    assert found.size % 32 == 0
    assert found.size <= max(most, 32)
    assert len(found.starts) == -(-found.rows // max(most // 32 * 32, 32))


def test_the_papers_gaussians_are_decoded_in_equal_parts() -> None:
    assert parts(160_000, 32_768) == (160_000, 32_000, (0, 32_000, 64_000, 96_000, 128_000))


# ---- a device made of the host --------------------------------------------------------------------------------------


class HostRuntime:
    """The calls of the CUDA runtime that arrays and streams make, on the host's memory and at once."""

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}
        self.cudaStreamNonBlocking = 1
        directions = ("HostToDevice", "DeviceToDevice", "DeviceToHost")
        self.cudaMemcpyKind = SimpleNamespace(**{f"cudaMemcpy{direction}": 0 for direction in directions})

    def cudaMalloc(self, nbytes: int) -> tuple[int, int]:  # noqa: N802
        memory = (ctypes.c_uint8 * (nbytes + 256))()
        ctypes.memset(memory, 0xFF, nbytes)  # NaN, where nobody writes
        pointer = -(-ctypes.addressof(memory) // 256) * 256
        self._memory[pointer] = memory
        return 0, pointer

    def cudaMemcpyAsync(self, target, source, nbytes, kind, stream) -> tuple[int]:  # noqa: N802
        ctypes.memmove(target, source, nbytes)
        return (0,)

    def cudaMemsetAsync(self, target, value, nbytes, stream) -> tuple[int]:  # noqa: N802
        ctypes.memset(target, value, nbytes)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags) -> tuple[int, int]:  # noqa: N802
        return 0, 1

    def cudaStreamSynchronize(self, stream) -> tuple[int]:  # noqa: N802
        return (0,)


class HostEngine:
    """An engine on arrays of that memory."""

    scratch_bytes = 1

    def __init__(self, backend: OnnxRuntimeBackend, bundle: Bundle, stage: str) -> None:
        described = bundle.stage(stage)
        self.inputs = tuple(tensor.name for tensor in described.inputs)
        self.outputs = tuple(tensor.name for tensor in described.outputs)
        self._engine = backend.engine(bundle, stage, "fp32")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bound: dict[str, DeviceArray] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape

    def bind(self, name: str, array: DeviceArray) -> None:
        assert array.pointer % 256 == 0, f"{name} begins where TensorRT cannot read"
        assert self._shapes.get(name, array.shape) == array.shape
        self._bound[name] = array

    def enqueue(self, stream: object, scratch: object) -> None:
        outputs = self._engine.run({name: self._bound[name].to_numpy() for name in self.inputs})
        for name in self.outputs:
            self._bound[name].copy_from(outputs[name])


class HostBackend:
    def load(self, bundle: Bundle, stage: str, precision: str) -> HostEngine:
        return HostEngine(OnnxRuntimeBackend(), bundle, stage)


class Replayed:
    """In place of a CUDA graph."""

    def __init__(self, stream: object, work: Callable[[], None]) -> None:
        self.launch = work
        work()


def host_step(x: DeviceArray, data: DeviceArray, *, velocity: DeviceArray, step: DeviceArray, stream: object) -> None:
    _, alpha, sigma, keep, current, previous = step.to_numpy()
    now = alpha * x.to_numpy() - sigma * velocity.to_numpy()
    x.copy_from(keep * x.to_numpy() + current * now + previous * data.to_numpy())
    data.copy_from(now)


@pytest.fixture
def host_backend(monkeypatch):
    runtime = HostRuntime()
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    monkeypatch.setattr(kernels, "sampler_step", host_step)
    monkeypatch.setattr(variation_field_on_device, "recorded", Replayed)
    return HostBackend()


@pytest.fixture
def tensorrt(engine_cache):
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(engine_cache)


@pytest.fixture(params=["host_backend", pytest.param("tensorrt", marks=pytest.mark.gpu)])
def backend(request):
    return request.getfixturevalue(request.param)


# ---- what it computes -----------------------------------------------------------------------------------------------


def plan(steps: int) -> list[Step]:
    schedule = CosineSchedule()
    return multistep_plan(schedule, log_snr_uniform(schedule, steps))


def example(frames: int, gaussians: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "images": (frames, 16, 192),
        "static": (STATIC, 14),
        "positions": (LATENTS, 3),
        "noise": (frames, LATENTS, 16),
        "gaussians": (gaussians, 14),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def through_the_host(bundle: Bundle, inputs: Arrays, steps: list[Step], backend: Optional[Any] = None) -> np.ndarray:
    made = backend or OnnxRuntimeBackend()
    run = {name: made.engine(bundle, name, "fp32").run for name in STAGES}
    given = {name: inputs[name] for name in ("images", "static")}
    context = {**run["dit_cond"](given), "positions": inputs["positions"]}

    def velocity(x, t):
        return run["dit_step"]({"x": x, "t": np.array([t], np.float32), **context})["v"]

    attended = run["vae_latent"]({"samples": sample_multistep(velocity, inputs["noise"], steps)})
    queries = run["vae_query"]({"gaussians": inputs["gaussians"]})["queries"]
    frames = [{name: array[frame, None] for name, array in attended.items()} for frame in range(len(inputs["noise"]))]
    return np.concatenate([run["vae_attend"]({"queries": queries, **frame})["changes"] for frame in frames])


# Parts of 512 rows at most: one part, one that is no multiple of 32, and three of which the last two overlap.
@pytest.mark.parametrize(("frames", "gaussians"), [(6, 512), (1, 45), (5, 1090)])
def test_changes_are_those_of_the_stages(random_gvf_bundle, backend, frames, gaussians) -> None:
    bundle = Bundle.load(random_gvf_bundle)
    field = VariationFieldOnDevice(backend, bundle, "fp32", frames=frames, gaussians=gaussians, plan=plan(3))
    for seed in (0, 1):  # what is left of the first does not matter to the second
        inputs = example(frames, gaussians, seed)
        parts_of_it = [
            through_the_host(bundle, {**inputs, "gaussians": inputs["gaussians"][i : i + 512]}, plan(3))
            for i in range(0, gaussians, 512)
        ]
        expected = np.concatenate(parts_of_it, axis=1)
        # float32 on both sides, through a network and three steps; TensorRT may round products to 10 bits (TF32).
        tolerance = (1e-5 if isinstance(backend, HostBackend) else 5e-3) * np.abs(expected).max()
        np.testing.assert_allclose(field.run(inputs), expected, rtol=0, atol=tolerance)


def test_frames_that_engines_cannot_read_are_refused(random_gvf_bundle, host_backend, monkeypatch) -> None:
    monkeypatch.setattr(variation_field_on_device, "_ALIGNMENT", 512)
    with pytest.raises(InvalidBundle, match=r"frame of 'values' has 5376 bytes"):
        VariationFieldOnDevice(
            host_backend, Bundle.load(random_gvf_bundle), "fp32", frames=2, gaussians=64, plan=plan(2)
        )
