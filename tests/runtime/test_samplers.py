"""Samplers against the exact solutions that normally distributed data has, and the official schedule's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge4d.runtime.errors import InvalidRequest, SamplingDiverged
from edge4d.runtime.samplers import (
    END,
    START,
    CosineSchedule,
    flow_times,
    log_snr_uniform,
    multistep_plan,
    sample_adaptive,
    sample_flow,
    sample_multistep,
)

SCHEDULE = CosineSchedule()
MEAN, DEVIATION = 0.7, 0.3


class NormalData:
    """The perfect v-network for data that is N(mean, deviation²) in each value: x_0 is its expectation given x."""

    def __init__(self, mean: float = MEAN, deviation: float = DEVIATION) -> None:
        self.mean, self.deviation = mean, deviation
        self.times: list[float] = []

    def __call__(self, x, model_time):
        self.times.append(model_time)
        t = model_time / 1000 + 1 / 996
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        variance = self.deviation**2
        data = (self.mean * sigma**2 + alpha * variance * x) / (alpha**2 * variance + sigma**2)
        return (alpha * x - data) / sigma

    def solution(self, noise):
        """Where the probability flow ends: every value keeps its place within the distribution."""

        def spread(t):
            return math.sqrt((SCHEDULE.alpha(t) * self.deviation) ** 2 + SCHEDULE.sigma(t) ** 2)

        place = (noise - SCHEDULE.alpha(START) * self.mean) / spread(START)
        return SCHEDULE.alpha(END) * self.mean + spread(END) * place


def noise(shape=(4, 32, 16), dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- the schedule ---------------------------------------------------------------------------------------------------


def cosine_table():
    """log(alpha) after each of 1000 steps, one step at a time."""
    log_alpha, table = 0.0, []
    for i in range(1000):
        now, then = (math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in ((i + 1) / 1000, i / 1000))
        log_alpha += 0.5 * math.log(1 - min(1 - now / then, 0.999))
        table.append(log_alpha)
    return table


def test_the_schedule_is_the_official_table_without_its_last_four_steps():
    table = cosine_table()
    assert SCHEDULE.steps == 996
    assert SCHEDULE.alpha(START) == pytest.approx(0.00623, abs=5e-6)
    assert SCHEDULE.log_snr(START) >= -5.1 > table[996] - 0.5 * math.log(1 - math.exp(2 * table[996]))
    for i in (0, 1, 400, 994, 995):
        assert math.log(SCHEDULE.alpha((i + 1) / 996)) == pytest.approx(table[i], rel=1e-12)
    between = (2 * math.log(SCHEDULE.alpha(500 / 996)) + math.log(SCHEDULE.alpha(501 / 996))) / 3
    assert math.log(SCHEDULE.alpha((500 + 1 / 3) / 996)) == pytest.approx(between, rel=1e-12)
    # The end lies before the table's first entry, on the line through the first two.
    below = table[0] + (table[1] - table[0]) * (END * 996 - 1)
    assert math.log(SCHEDULE.alpha(END)) == pytest.approx(below, rel=1e-9)


def test_networks_see_times_up_to_998_996():
    assert SCHEDULE.model_time(START) == pytest.approx(998.99598, abs=1e-5)
    assert SCHEDULE.model_time(1 / 996) == 0.0


def test_alpha_and_sigma_keep_the_variance_and_time_inverts_log_snr():
    for t in np.linspace(END, START, 57):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-12)
        assert SCHEDULE.log_snr(t) == pytest.approx(math.log(alpha / sigma), abs=1e-9)
        assert SCHEDULE.time(SCHEDULE.log_snr(t)) == pytest.approx(t, abs=1e-9)


def test_uniform_steps_are_equally_far_apart_in_log_snr():
    times = log_snr_uniform(SCHEDULE)
    assert (len(times), times[0], times[-1]) == (17, START, END)
    gaps = np.diff([SCHEDULE.log_snr(t) for t in times])
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-9)


# ---- DPM-Solver++ ---------------------------------------------------------------------------------------------------


def multistep_error(steps: int) -> float:
    network = NormalData()
    found = sample_multistep(network, noise(), multistep_plan(SCHEDULE, log_snr_uniform(SCHEDULE, steps)))
    assert len(network.times) == steps
    return float(np.abs(found - network.solution(noise())).max())


def test_multistep_converges_with_order_two():
    errors = [multistep_error(steps) for steps in (20, 40, 80, 160)]
    ratios = np.divide(errors[:-1], errors[1:])
    assert (ratios > 3.4).all()  # 4 in the limit; steps of 0.6 in log SNR are not there yet
    assert ratios[-1] == pytest.approx(4.0, abs=0.3)


def test_sixteen_steps_come_close():
    assert multistep_error(16) < DEVIATION / 10  # the worst of 2,048 values


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_a_single_picture_is_found_in_any_number_of_steps(steps):
    """With deviation 0 the network always names the picture, and the update is exact for a constant x_0."""
    network = NormalData(deviation=0.0)
    found = sample_multistep(network, noise(), multistep_plan(SCHEDULE, log_snr_uniform(SCHEDULE, steps)))
    np.testing.assert_allclose(found, network.solution(noise()), atol=1e-12)


def test_a_plan_is_the_published_update():
    """DPM-Solver++(2M) as its authors write it, on numbers without a meaning."""
    times = [1.0, 0.8, 0.55, 0.2]
    values = iter([0.3, -1.2, 2.0])
    found = sample_multistep(lambda x, t: np.array([next(values)]), np.array([0.5]), multistep_plan(SCHEDULE, times))

    lam = [SCHEDULE.log_snr(t) for t in times]
    alpha, sigma = [SCHEDULE.alpha(t) for t in times], [SCHEDULE.sigma(t) for t in times]
    x, before = 0.5, None
    for i, v in enumerate([0.3, -1.2, 2.0]):
        data, h = alpha[i] * x - sigma[i] * v, lam[i + 1] - lam[i]
        combined = data
        if i == 1:  # neither the first step nor the last of fewer than ten
            r = (lam[i] - lam[i - 1]) / h
            combined = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * combined
        before = data
    assert found[0] == pytest.approx(x, rel=1e-12)


def test_the_last_of_ten_steps_is_of_second_order():
    nine, ten = (multistep_plan(SCHEDULE, log_snr_uniform(SCHEDULE, steps)) for steps in (9, 10))
    assert [step.previous == 0.0 for step in nine] == [True, *[False] * 7, True]
    assert [step.previous == 0.0 for step in ten] == [True, *[False] * 9]


def test_adaptive_steps_keep_the_error_that_is_allowed():
    evaluations = []
    for tolerance in (1e-2, 1e-3, 1e-4):
        network = NormalData()
        found = sample_adaptive(network, noise(), SCHEDULE, atol=tolerance, rtol=tolerance)
        evaluations.append(len(network.times))
        # What is allowed is allowed to each step, on average over the values; this is the worst value after them all.
        assert np.abs(found - network.solution(noise())).max() < 10 * tolerance
    # An order of two: a hundredth of the error for about ten times the steps.
    assert 5 < evaluations[2] / evaluations[0] < 20


def test_adaptive_steps_are_the_published_ones():
    """DPM-Solver-12 with data prediction, without keeping anything between trials."""
    network = NormalData()

    def data(x, t):
        return SCHEDULE.alpha(t) * x - SCHEDULE.sigma(t) * network(x, SCHEDULE.model_time(t))

    x = previous = noise()
    s, h, last, trials, taken = 1.0, 0.05, SCHEDULE.log_snr(END), 0, 0
    while abs(s - END) > 1e-5:
        lam = SCHEDULE.log_snr(s)
        t, middle = SCHEDULE.time(lam + h), SCHEDULE.time(lam + 0.5 * h)
        now = data(x, s)
        low = SCHEDULE.sigma(t) / SCHEDULE.sigma(s) * x - SCHEDULE.alpha(t) * math.expm1(-h) * now
        halfway = SCHEDULE.sigma(middle) / SCHEDULE.sigma(s) * x - SCHEDULE.alpha(middle) * math.expm1(-0.5 * h) * now
        high = low - 0.5 / 0.5 * SCHEDULE.alpha(t) * math.expm1(-h) * (data(halfway, middle) - now)
        allowed = np.maximum(0.0078, 0.05 * np.maximum(abs(low), abs(previous)))
        error = math.sqrt((((high - low) / allowed) ** 2).mean())
        trials += 1
        if error <= 1:
            x, previous, s, taken = high, low, t, taken + 1
        h = min(0.9 * h * error**-0.5, last - SCHEDULE.log_snr(s))
    np.testing.assert_allclose(sample_adaptive(NormalData(), noise(), SCHEDULE), x, atol=1e-10)
    network.times.clear()
    sample_adaptive(network, noise(), SCHEDULE)
    assert len(network.times) == trials + taken  # the official solver: 2 trials


def test_a_step_that_is_not_taken_costs_one_evaluation():
    network = NormalData()
    found = sample_adaptive(network, noise(), SCHEDULE, atol=1e-3, rtol=1e-3, first_step=5.0)
    assert np.abs(found - network.solution(noise())).max() < 0.01
    # The first step was too long: its middle is asked, then the middle of a shorter one, but its start only once.
    assert network.times[0] == SCHEDULE.model_time(START)
    assert network.times[0] > network.times[2] > network.times[1]
    assert len(set(network.times)) == len(network.times)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stops_the_sampler(value):
    with pytest.raises(SamplingDiverged, match="cannot go on with"), np.errstate(invalid="ignore"):
        sample_adaptive(lambda x, t: np.full_like(x, value), noise(), SCHEDULE)


def test_a_network_that_changes_all_the_time_stops_the_sampler():
    generator = np.random.default_rng(0)
    with pytest.raises(SamplingDiverged, match="10000 trials"):
        sample_adaptive(lambda x, t: 1e6 * generator.standard_normal(x.shape), noise((4,)), SCHEDULE)


@pytest.mark.parametrize("times", [[0.2, 0.5], [1.0, 0.5, 0.5], [1.5, 0.1], [1.0, 0.0]])
def test_times_that_do_not_fall_are_refused(times):
    with pytest.raises(InvalidRequest, match="must fall"):
        multistep_plan(SCHEDULE, times)


# ---- flow matching --------------------------------------------------------------------------------------------------


def straight_flow(x, model_time):
    """The perfect flow-matching network for data that is N(MEAN, DEVIATION²) in each value."""
    t = model_time / 1000
    variance = ((1 - t) * DEVIATION) ** 2 + t**2
    return -MEAN + (x - (1 - t) * MEAN) * (t - (1 - t) * DEVIATION**2) / variance


def test_flow_converges_with_order_one():
    exact = MEAN + DEVIATION * noise()
    errors = [np.abs(sample_flow(straight_flow, noise(), flow_times(n, 3.0)) - exact).max() for n in (50, 100, 200)]
    assert errors[0] < 0.12
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2.0, atol=0.1)


def test_flow_to_a_single_picture_is_exact_in_one_step():
    found = sample_flow(lambda x, time: (x - MEAN) / (time / 1000), noise(), flow_times(1))
    np.testing.assert_allclose(found, MEAN, atol=1e-12)


def test_rescaled_times():
    assert flow_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(flow_times(4, 3.0), [1.0, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0.0])


def test_guidance_counts_within_its_interval_only():
    asked: dict[str, list[float]] = {"with": [], "without": []}

    def network(name, value):
        def velocity(x, time):
            asked[name].append(time)
            return np.full_like(x, value)

        return velocity

    times = flow_times(12, 3.0)
    found = sample_flow(
        network("with", 1.0),
        np.zeros(2),
        times,
        unconditional=network("without", 0.5),
        guidance=7.5,
        interval=(0.5, 1.0),
    )
    assert asked["with"] == [1000 * t for t in times[:-1]]
    assert asked["without"] == asked["with"][:10]  # 22 evaluations in all
    np.testing.assert_allclose(found, -((1 - times[10]) * (8.5 - 3.75) + times[10]))


def test_a_flow_needs_steps():
    for steps, rescale in ((0, 1.0), (3, 0.0)):
        with pytest.raises(InvalidRequest, match="at least one step"):
            flow_times(steps, rescale)
    with pytest.raises(InvalidRequest, match="at least one step"):
        log_snr_uniform(SCHEDULE, 0)


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["multistep", "adaptive", "flow"])
def test_the_same_noise_gives_the_same_bits_and_keeps_its_dtype(sampler):
    def sample(start):
        if sampler == "flow":
            return sample_flow(straight_flow, start, flow_times(12, 3.0))
        if sampler == "adaptive":
            return sample_adaptive(NormalData(), start, SCHEDULE)
        return sample_multistep(NormalData(), start, multistep_plan(SCHEDULE, log_snr_uniform(SCHEDULE)))

    start = noise(dtype=np.float32)
    start.setflags(write=False)
    first, second = sample(start), sample(start.copy())
    assert first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
