"""Samplers: noise becomes data by integrating what a network says, on the host, with one call per evaluation.

DPM-Solver++ (Lu et al. 2022) in two forms for networks that predict v on a discrete cosine schedule: `sample_adaptive`
chooses its steps, `sample_multistep` follows a plan whose numbers are known before the first call, so that a whole loop
can be recorded as one CUDA graph. `sample_flow` integrates flow-matching networks by Euler's method.

Arrays keep their dtype; everything about the schedule is float64. The same inputs give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.errors import InvalidRequest, SamplingDiverged

Array = NDArray[Any]
Velocity = Callable[[Array, float], Array]
"""A network: noisy data and its time in the network's own units to v, of the data's shape."""

START, END = 1.0, 1.0 / 1000.0
"""Times between which DPM-Solver integrates, as the official scripts of GVFDiffusion do; noise is at START."""

MAX_TRIALS = 10_000
"""Steps that `sample_adaptive` tries; official models need about ten, an error of 1e-6 may need thousands."""


class CosineSchedule:
    """The discrete cosine schedule as continuous functions of time: x_t = alpha(t) x_0 + sigma(t) noise.

    As in the official solver, steps whose lambda = log(alpha / sigma) is below -5.1 are dropped from the table of 1000.
    996 are left; they are stretched over (0, 1] and log(alpha) is linear between them. Networks are nevertheless given
    1000 (t - 1/996), so that they see 0 to 998.996: their weights are used with that, right or wrong.

    Attributes:
        steps: entries of the table, 996.
    """

    def __init__(self) -> None:
        edges = np.cos((np.linspace(0.0, 1.0, 1001) + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
        log_alphas = 0.5 * np.cumsum(np.log1p(-betas))
        log_alphas = log_alphas[_lambda(log_alphas) >= -5.1]
        self.steps = len(log_alphas)
        times = np.linspace(0.0, 1.0, self.steps + 1)[1:]
        slope = (log_alphas[1] - log_alphas[0]) / (times[1] - times[0])
        # END is before the first entry: the first line is extended to it.
        self._times = np.concatenate([[END], times])
        self._log_alphas = np.concatenate([[log_alphas[0] + slope * (END - times[0])], log_alphas])

    def alpha(self, t: float) -> float:
        """Factor of the data at t in [END, START]."""
        return math.exp(self._log_alpha(t))

    def sigma(self, t: float) -> float:
        """Factor of the noise at t in [END, START]."""
        return math.sqrt(-math.expm1(2.0 * self._log_alpha(t)))

    def log_snr(self, t: float) -> float:
        """lambda(t) = log(alpha / sigma), which falls with t."""
        return float(_lambda(np.float64(self._log_alpha(t))))

    def time(self, log_snr: float) -> float:
        """The t at which `log_snr` is this."""
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * log_snr)
        return float(np.interp(log_alpha, self._log_alphas[::-1], self._times[::-1]))

    def model_time(self, t: float) -> float:
        """What a network is given as t."""
        return 1000.0 * (t - 1.0 / self.steps)

    def _log_alpha(self, t: float) -> float:
        return float(np.interp(t, self._times, self._log_alphas))


def _lambda(log_alpha: Any) -> Any:
    return log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha))


# ---- DPM-Solver++ ---------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One evaluation and the update after it, all numbers known beforehand.

    x_0 = alpha x - sigma v(x, model_time); x becomes keep x + current x_0 + previous (x_0 of the step before).
    """

    model_time: float
    alpha: float
    sigma: float
    keep: float
    current: float
    previous: float


def log_snr_uniform(schedule: CosineSchedule, steps: int = 16) -> list[float]:
    """steps + 1 times from START to END, equally far apart in log SNR."""
    if steps < 1:
        raise InvalidRequest("A sampler needs at least one step.", note=f"{steps} were asked for.")
    inner = np.linspace(schedule.log_snr(START), schedule.log_snr(END), steps + 1)[1:-1]
    return [START, *(schedule.time(log_snr) for log_snr in inner), END]


def multistep_plan(schedule: CosineSchedule, times: Sequence[float]) -> list[Step]:
    """The steps of DPM-Solver++(2M) along falling times within [END, START].

    The first step has no predecessor and is of first order; so is, below ten steps, the last one (as officially).
    """
    if not all(START >= s > t >= END for s, t in zip(times[:-1], times[1:])):
        raise InvalidRequest("The times of a sampler must fall.", note=f"They may run from {START} to {END}.")
    log_snrs = [schedule.log_snr(t) for t in times]
    steps = len(times) - 1
    plan = []
    for i, (s, t) in enumerate(zip(times[:-1], times[1:])):
        h = log_snrs[i + 1] - log_snrs[i]
        gain = -schedule.alpha(t) * math.expm1(-h)
        first_order = i == 0 or (steps < 10 and i == steps - 1)
        slope = 0.0 if first_order else 0.5 * gain * h / (log_snrs[i] - log_snrs[i - 1])
        keep = schedule.sigma(t) / schedule.sigma(s)
        plan.append(Step(schedule.model_time(s), schedule.alpha(s), schedule.sigma(s), keep, gain + slope, -slope))
    return plan


def sample_multistep(velocity: Velocity, noise: Array, plan: Sequence[Step]) -> Array:
    """Data from noise along a plan, with one evaluation a step.

    Args:
        velocity: predicts v = alpha noise - sigma x_0.
        noise: N(0, 1), of any shape.
    """
    x, before = noise, np.zeros_like(noise)
    for step in plan:
        data = step.alpha * x - step.sigma * velocity(x, step.model_time)
        x = step.keep * x + step.current * data + step.previous * before
        before = data
    return x


def sample_adaptive(
    velocity: Velocity,
    noise: Array,
    schedule: CosineSchedule,
    *,
    first_step: float = 0.05,
    atol: float = 0.0078,
    rtol: float = 0.05,
    safety: float = 0.9,
) -> Array:
    """Data from noise by adaptive DPM-Solver++ of orders 1 and 2 (DPM-Solver-12).

    Two evaluations for a step that is taken, one more for each that is not: what the network said at its start is kept.

    Args:
        velocity: predicts v = alpha noise - sigma x_0.
        noise: N(0, 1), of any shape, one sample: the error of a step is the root mean square over all of it.
        first_step: of the log SNR, the first that is tried.
        atol, rtol: error that a step may make, and relative to the values.
        safety: factor on each new step.

    Raises:
        SamplingDiverged: the error is not finite, or steps become ever smaller.
    """
    x = previous = noise
    s, last = START, schedule.log_snr(END)
    h = first_step
    data: Optional[Array] = None
    for _ in range(MAX_TRIALS):
        if data is None:
            data = _data(velocity, x, s, schedule)
        log_snr = schedule.log_snr(s)
        t = schedule.time(log_snr + h)
        low = _towards(x, data, s, t, schedule)
        middle = schedule.time(log_snr + 0.5 * h)
        later = _data(velocity, _towards(x, data, s, middle, schedule), middle, schedule)
        high = low - schedule.alpha(t) * math.expm1(-h) * (later - data)
        error = _relative_error(high, low, previous, atol, rtol)
        if error <= 1.0:
            x, previous, s, data = high, low, t, None
            if s - END <= 1e-5:
                return x
        h = min(safety * h * error**-0.5 if error > 0.0 else math.inf, last - schedule.log_snr(s))
    raise SamplingDiverged(
        "The sampler does not reach the data.",
        note=f"After {MAX_TRIALS} trials it is at t = {s:g} of {END:g}; the last step was {h:g}.",
        hint="The network changes too abruptly with time: allow larger errors, or use a fixed number of steps.",
    )


def _data(velocity: Velocity, x: Array, t: float, schedule: CosineSchedule) -> Array:
    """The network's x_0."""
    estimate: Array = schedule.alpha(t) * x - schedule.sigma(t) * velocity(x, schedule.model_time(t))
    return estimate


def _towards(x: Array, data: Array, s: float, t: float, schedule: CosineSchedule) -> Array:
    """x at t from x at s, exactly so if x_0 were `data` all the way."""
    h = schedule.log_snr(t) - schedule.log_snr(s)
    moved: Array = schedule.sigma(t) / schedule.sigma(s) * x - schedule.alpha(t) * math.expm1(-h) * data
    return moved


def _relative_error(high: Array, low: Array, previous: Array, atol: float, rtol: float) -> float:
    """Root mean square of the difference of two orders, over what is allowed."""
    allowed = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(previous)))
    error = float(np.sqrt(np.mean(np.square((high - low) / allowed))))
    if not math.isfinite(error):
        raise SamplingDiverged(
            "The network gave values that a sampler cannot go on with.",
            note=f"The error of a step is {error}.",
            hint="Check its inputs for NaN and Inf; fp16 overflows above 65504.",
        )
    return error


# ---- flow matching --------------------------------------------------------------------------------------------------


def flow_times(steps: int, rescale_t: float = 1.0) -> list[float]:
    """steps + 1 times from 1 (noise) to 0 (data); rescale_t > 1 puts more of them near the noise."""
    if steps < 1 or rescale_t <= 0.0:
        raise InvalidRequest(
            "A sampler needs at least one step and a positive rescale_t.", note=f"Found {steps} and {rescale_t:g}."
        )
    uniform = np.linspace(1.0, 0.0, steps + 1)
    return [float(t) for t in rescale_t * uniform / (1.0 + (rescale_t - 1.0) * uniform)]


def sample_flow(
    velocity: Velocity,
    noise: Array,
    times: Sequence[float],
    *,
    unconditional: Optional[Velocity] = None,
    guidance: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """Data from noise by Euler's method along `times`, such as `flow_times(12, 3.0)`.

    Args:
        velocity: predicts v = noise - x_0 with the condition; its time is 1000 t.
        noise: N(0, 1), of any shape.
        unconditional: the same without the condition. Where it is given and t is in `interval`, both are asked and
            v = (1 + guidance) conditional - guidance unconditional; elsewhere the condition counts alone.
        interval: smallest and largest t with guidance, both included.
    """
    x = noise
    for s, t in zip(times[:-1], times[1:]):
        v = velocity(x, 1000.0 * s)
        if unconditional is not None and interval[0] <= s <= interval[1]:
            v = (1.0 + guidance) * v - guidance * unconditional(x, 1000.0 * s)
        x = x - (s - t) * v
    return x
