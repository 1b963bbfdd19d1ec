"""Measures a bundle: every stage and layer on inputs of its example, then the frames of its scene."""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

import edge4d
from edge4d.runtime import layers, machine
from edge4d.runtime.backends import Backend, cuda, draws_on_gpu
from edge4d.runtime.backends import backend as backend_by_name
from edge4d.runtime.bundle import Bundle, Stage
from edge4d.runtime.errors import InvalidRequest
from edge4d.runtime.gpu_peaks import gpu_peaks
from edge4d.runtime.layers import LayerRun, LooksInside, Measurement, TensorType
from edge4d.runtime.profile import Layer, Peaks, Profile, StageProfile
from edge4d.runtime.profile_inputs import Sample, Tensors, sample
from edge4d.runtime.renderer import Renderer, render

Report = Callable[[int, int], None]


def profile_bundle(
    bundle: Bundle,
    backend: str = "auto",
    *,
    precisions: Optional[Sequence[str]] = None,
    size: Optional[tuple[int, int]] = None,
    runs: int = 30,
    warm_up: int = 5,
    frames: int = 24,
    report: Report = lambda done, total: None,
) -> Profile:
    """Runs every stage of a bundle by itself, in every precision on the same inputs, and draws the scene it makes.

    Layers are measured in runs of their own, since a clock at each of them takes time. On a GPU further runs tell how
    much of a run goes to copies, and how much to computing.

    Args:
        backend: "auto" or a backend's name, as in `edge4d.load`.
        precisions: some of the bundle's; all of them without it.
        size: (width, height) of the scene, and of the photograph where it is made of one; the bundle's without it.
        runs, warm_up: of each kind, how many are measured, after how many that are not.
        frames: how many to draw, for bundles that make a scene.
        report: is told how many runs and frames are done, and how many there are in all.

    Raises:
        PrecisionNotInBundle: the bundle has no such variant.
        InvalidRequest: a number or size that cannot be used.
        BackendUnavailable: the backend does not work on this machine.
        EngineFailed: a network could not be run.
    """
    _check_number("runs", runs, least=1)
    _check_number("runs to warm up", warm_up, least=0)
    _check_number("frames", frames, least=0)
    precisions = precisions or bundle.precisions
    variants = [(stage, precision) for stage in bundle.stages.values() for precision in precisions]
    for stage, precision in variants:
        stage.graph(precision)  # one that is not there is said before any work
    networks = backend_by_name(backend)
    on = sample(bundle, networks, precisions[0], size)
    steps = _Steps(len(variants) * 2 * (warm_up + runs) + frames, report)
    clock = _Clock(networks, warm_up, runs, steps)
    stages = tuple(clock.stage(bundle, stage, precision, on.inputs[stage.name]) for stage, precision in variants)
    command = _command(bundle, backend, precisions, on.size, runs, frames)
    return Profile(
        bundle=bundle.name,
        backend=networks.name if backend == "auto" else backend,
        about=_about(networks.name, draws_on_gpu(backend), command),
        size=on.size,
        stages=stages,
        render_ms=_render_ms(on, backend, frames, steps),
        peaks=_peaks(networks.name),
    )


def _check_number(what: str, number: int, least: int) -> None:
    if number < least:
        raise InvalidRequest(f"That is no number of {what}.", note=f"{number} were asked for, at least {least}.")


class _Steps:
    """Counts what is done."""

    def __init__(self, total: int, report: Report) -> None:
        self._done, self._total, self._report = 0, total, report

    def advance(self, by: int = 1) -> None:
        self._done += by
        self._report(self._done, self._total)


# --- stages and layers ------------------------------------------------------------------------------------------------


class _Clock:
    """Measures stages on one backend, each in `runs` runs after some that do not count."""

    def __init__(self, backend: Backend, warm_up: int, runs: int, steps: _Steps) -> None:
        self._backend, self._warm_up, self._runs, self._steps = backend, warm_up, runs, steps

    def stage(self, bundle: Bundle, stage: Stage, precision: str, inputs: Tensors) -> StageProfile:
        runs_ms, outputs = self._runs_ms(bundle, stage.name, precision, inputs)
        inside = self._inside(bundle, stage.name, precision, inputs)
        first = inside.layer_runs[0] if inside.layer_runs else []
        largest = max((layer.bytes - layer.weights_bytes for layer in first), default=0)
        return StageProfile(
            name=stage.name,
            precision=precision,
            runs_ms=runs_ms,
            layers=_layers(inside.layer_runs),
            inputs=_types(inputs),
            outputs=_types(outputs),
            weights_bytes=sum(layer.weights_bytes for layer in first),
            activation_bytes=inside.scratch_bytes or largest,
            io_bytes=sum(array.nbytes for array in (*inputs.values(), *outputs.values())),
            engine_bytes=inside.engine_bytes,
            gpu_runs=tuple(inside.gpu_runs),
            layer_info=inside.layer_info,
        )

    def _runs_ms(
        self, bundle: Bundle, stage: str, precision: str, inputs: Tensors
    ) -> tuple[tuple[float, ...], dict[str, NDArray[Any]]]:
        """Milliseconds of each run, and the last one's outputs."""
        times = []
        with self._backend.engine(bundle, stage, precision) as engine:
            for _ in range(self._warm_up + self._runs):
                start = time.perf_counter()
                outputs = engine.run(inputs)
                times.append(1e3 * (time.perf_counter() - start))
                self._steps.advance()
        return tuple(times[self._warm_up :]), outputs

    def _inside(self, bundle: Bundle, stage: str, precision: str, inputs: Tensors) -> Measurement:
        """Without what is not there on backends that cannot measure it."""
        runs = self._warm_up + self._runs
        inside = Measurement(layer_runs=())
        if isinstance(self._backend, LooksInside):
            inside = self._backend.look_inside(bundle, stage, precision, inputs, runs)
        self._steps.advance(runs)
        return inside._replace(layer_runs=inside.layer_runs[self._warm_up :], gpu_runs=inside.gpu_runs[self._warm_up :])


def _layers(by_run: Sequence[Sequence[LayerRun]]) -> tuple[Layer, ...]:
    """Over all runs, in the order of the one of median length."""
    if not by_run:
        return ()
    by_length = sorted(by_run, key=lambda run: run[-1].start_ms + run[-1].ms if run else 0.0)
    usual = by_length[len(by_run) // 2]
    return tuple(_layer(layer, [run.ms for run in same]) for layer, same in zip(usual, zip(*by_run)))


def _layer(layer: LayerRun, times_ms: Sequence[float]) -> Layer:
    return Layer(
        name=layer.name,
        kind=layer.kind,
        dtype=layers.dtype(layer.outputs),
        ms=statistics.median(times_ms),
        average_ms=statistics.fmean(times_ms),
        start_ms=layer.start_ms,
        flops=layers.flops(layer.kind, layer.inputs, layer.outputs),
        bytes=layer.bytes,
        inputs=tuple(map(str, layer.inputs)),
        outputs=tuple(map(str, layer.outputs)),
        tactic=layer.tactic,
    )


def _types(tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    return {name: str(TensorType("", str(array.dtype), array.shape)) for name, array in tensors.items()}


# --- frames -----------------------------------------------------------------------------------------------------------


def _render_ms(on: Sample, backend: str, frames: int, steps: _Steps) -> tuple[float, ...]:
    """Milliseconds of each frame of the scene, if there is one, from the camera to the picture on the host."""
    if on.scene is None or not frames:
        return ()
    renderer = Renderer(on.scene, backend=backend)
    path = render(on.scene, on.trajectory, frames=frames, backend=backend).path
    renderer.render(path.cameras[0], float(path.times[0]))  # the first frame makes room for the others
    times = []
    for camera, t in zip(path.cameras, path.times):
        start = time.perf_counter()
        renderer.render(camera, float(t))
        times.append(1e3 * (time.perf_counter() - start))
        steps.advance()
    return tuple(times)


# --- what was measured with what --------------------------------------------------------------------------------------


def _about(networks: str, on_gpu: bool, command: str) -> dict[str, str]:
    return {
        "edge4d": edge4d.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        networks: getattr(sys.modules.get(networks), "__version__", "unknown"),
        "machine": machine.processor(),
        "cores": str(machine.cores()),
        **({"gpu": cuda.device_name(), "cuda": f"{cuda.driver_cuda()} (driver)"} if on_gpu else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(" ", "seconds"),
    }


def _peaks(networks: str) -> Peaks:
    """Of what runs the networks."""
    if networks == "tensorrt":
        return gpu_peaks(cuda.device_name().partition(",")[0], cuda.multiprocessors())
    return machine.peaks() if networks == "onnxruntime" else Peaks()


def _command(
    bundle: Bundle, backend: str, precisions: Sequence[str], size: tuple[int, int], runs: int, frames: int
) -> str:
    options = {"backend": backend, "size": f"{size[0]}x{size[1]}", "runs": runs, "frames": frames}
    if len(precisions) == 1:
        options["precision"] = precisions[0]
    words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return shlex.join(["edge4d", "profile", bundle.name, *words])
