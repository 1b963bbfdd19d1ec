"""The motion kernel against the terms and activations of the runtime, which are themselves tested against formulas."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.kernels import cuda
from edge4d.kernels.cuda import DeltaTerm, PolyTerm, StoredGaussians
from edge4d.runtime.backends.cuda import DeviceArray, Graph, Stream
from edge4d.runtime.camera import Camera
from edge4d.runtime.gaussians import Activation, Gaussians
from edge4d.runtime.motion import WIDTHS, Delta, Motion, Poly
from edge4d.runtime.scene import Scene4D

pytestmark = pytest.mark.gpu

CAMERA = Camera.from_fov(64, 32, 60.0)
GROUPS = 5
EPS = float(np.finfo(np.float32).eps)


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def scene(count: int = 1000, seed: int = 0, *, coefficients: int = 0, **options: Any) -> Scene4D:
    rng = np.random.default_rng(seed)
    return Scene4D(
        means=f32(rng.normal(size=(count, 3)) * 5),
        quats=f32(rng.normal(size=(count, 4))),
        scales=f32(rng.uniform(0.05, 0.5, (count, 3))),
        opacities=f32(rng.uniform(0, 1, count)),
        colors=f32(rng.normal(size=(count, coefficients, 3) if coefficients else (count, 3))),
        groups=rng.integers(0, GROUPS, count).astype(np.int32),
        camera=CAMERA,
        **options,
    )


def poly(seed: int = 1, P: int = 2, Q: int = 2) -> Poly:
    rng = np.random.default_rng(seed)
    return Poly(*(f32(rng.normal(size=shape)) for shape in ((GROUPS, 3), (GROUPS, P, 3), (GROUPS, Q, 3))))


def delta(count: int, seed: int = 2, *, names: Optional[list[str]] = None, dtype=np.float32, some=False, **settings):
    """Differences of `names`, with an unused channel before each; of every second Gaussian if `some`."""
    rng = np.random.default_rng(seed)
    layout, channels = {}, 0
    for name in names or list(WIDTHS):
        layout[name] = (channels + 1, channels + 1 + WIDTHS[name])
        channels += 1 + WIDTHS[name]
    ids = rng.permutation(count)[: count // 2].astype(np.int32) if some else None
    rows = count if ids is None else len(ids)
    times = np.sort(rng.uniform(-1, 3, 6))
    return Delta(times, rng.normal(size=(6, rows, channels)).astype(dtype), layout, ids, **settings)


class OnDevice:
    """A scene's arrays on the GPU and everything that `move_gaussians` takes."""

    def __init__(self, scene: Scene4D, dtype: type = np.float32, *, poison: int = 0xFF) -> None:
        self.stream = Stream()
        stored = (scene.means, scene.quats, scene.scales, scene.opacities, scene.colors)
        self.stored = StoredGaussians(*map(DeviceArray.from_numpy, stored))
        self.out = StoredGaussians(*(DeviceArray(array.shape, dtype) for array in stored))
        for array in self.out:
            array.fill_bytes(poison)
        self.time = DeviceArray((1,), np.float64)
        a = scene.activation
        self.options = {
            "groups": DeviceArray.from_numpy(scene.groups),
            "terms": [on_device(term, len(scene)) for term in scene.motion],
            "scale_activation": a.scale,
            "opacity_activation": a.opacity,
            "scale_bias": a.scale_bias,
            "opacity_bias": a.opacity_bias,
            "scale_floor": a.scale_floor,
            "quat_bias": a.quat_bias,
        }

    def launch(self, **changes: Any) -> None:
        options = {"time": self.time, "out": self.out, "stream": self.stream, **self.options, **changes}
        cuda.move_gaussians(self.stored, **options)

    def at(self, t: float, **changes: Any) -> Gaussians:
        self.time.copy_from(np.array([t]))
        self.launch(**changes)
        return self.moved()

    def moved(self) -> Gaussians:
        self.stream.synchronize()
        return Gaussians(*(array.to_numpy() for array in self.out))


def on_device(term: Motion, count: int):
    if isinstance(term, Poly):
        return PolyTerm(*map(DeviceArray.from_numpy, (term.centres, term.linear, term.angular)))
    row_of = None
    if term.ids is not None:
        rows = np.full(count, -1, np.int32)
        rows[term.ids] = np.arange(len(term.ids))
        row_of = DeviceArray.from_numpy(rows)
    return DeltaTerm(
        DeviceArray.from_numpy(term.times),
        DeviceArray.from_numpy(term.data),
        {name: first for name, (first, _) in term.layout.items()},
        row_of,
        term.domain == "raw",
        term.rotation,
        term.interpolation,
    )


def assert_agrees(ours: Gaussians, scene: Scene4D, t: float) -> None:
    """Within float32's rounding.

    Both sides compute in float32 and differ in the order of sums and in how exp, tanh and the like round their last
    bits: some eight roundings of a few eps each, of numbers as large as the largest that takes part. A mean's are its
    arm, centre and shift, up to some 100 m here; scales and opacities that were activated inherit their argument's
    rounding, in proportion to their size.
    """
    expected = scene.evaluate(t)
    for name, got, wanted in zip(Gaussians._fields, ours, expected):
        wanted = wanted.astype(np.float64)
        size = {"quats": 1.0, "opacities": 1.0}.get(name, np.maximum(1.0, np.abs(wanted).max(initial=0.0)))
        np.testing.assert_allclose(got, wanted, rtol=16 * EPS, atol=16 * EPS * size, err_msg=name)


TIMES = (-2.0, -1e-3, 0.0, 0.4, 1.0, 2.71, 9.0)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("P", "Q"), [(2, 2), (0, 3), (3, 0), (8, 1)])
def test_polynomials(t, P, Q) -> None:
    moving = scene(motion=(poly(P=P, Q=Q),))
    if P == 8:  # t^8 is 4e7 at 9 s: the largest numbers decide what rounding means
        t = min(t, 2.0)
    assert_agrees(OnDevice(moving).at(t), moving, t)


def test_polynomials_after_minutes_and_many_turns() -> None:
    moving = scene(motion=(poly(),))
    t = 120.0  # angles of 14,000 rad
    ours, expected = OnDevice(moving).at(t), moving.evaluate(t)
    # The shift alone is 14 km, where neighbouring float32 are a millimetre apart: look at what the turn gives.
    np.testing.assert_allclose(ours.quats, expected.quats, atol=8 * EPS)
    np.testing.assert_allclose(ours.means, expected.means, rtol=4 * EPS, atol=0.01)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("interpolation", ["hold", "linear"])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_differences(t, dtype, interpolation, some) -> None:
    still = scene()
    moving = scene(motion=(delta(len(still), dtype=dtype, interpolation=interpolation, some=some),))
    assert_agrees(OnDevice(moving).at(t), moving, t)


@pytest.mark.parametrize("rotation", ["add", "mul_left", "mul_right"])
@pytest.mark.parametrize("t", [-2.0, 0.4, 1.0, 9.0])
def test_rotations(rotation, t) -> None:
    moving = scene(motion=(delta(1000, names=["quats"], rotation=rotation),))
    assert_agrees(OnDevice(moving).at(t), moving, t)


def test_at_a_sample_time_the_sample_counts() -> None:
    term = delta(1000, names=["means"])
    moving = scene(motion=(term,))
    device = OnDevice(moving)
    for t in term.times.tolist():
        np.testing.assert_array_equal(device.at(t).means, moving.evaluate(t).means)


ACTIVATIONS = [
    Activation(),
    Activation("exp", "sigmoid"),
    Activation("exp", "sigmoid", -1.5, 0.3, 0.0, (0.5, 0.0, -0.25, 0.0)),
    Activation("softplus", "sigmoid", -5.51946, -2.19722, 9e-4, (1.0, 0.0, 0.0, 0.0)),
    Activation("softplus", "identity"),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("domain", ["raw", "activated"])
def test_activations(activation, domain) -> None:
    moving = scene(activation=activation, motion=(delta(1000, domain=domain),))
    assert_agrees(OnDevice(moving).at(0.7), moving, 0.7)
    still = scene(activation=activation)
    assert_agrees(OnDevice(still).at(0.7), still, 0.7)


@pytest.mark.parametrize("coefficients", [0, 1, 4, 9, 16])
def test_colours(coefficients) -> None:
    moving = scene(333, coefficients=coefficients, motion=(delta(333, names=["colors"]),))
    device = OnDevice(moving)
    assert_agrees(device.at(0.7), moving, 0.7)
    still = moving.without_motion()
    np.testing.assert_array_equal(OnDevice(still).at(0.7).colors, still.colors)


def test_raw_terms_then_activations_then_the_others_in_order() -> None:
    terms = (
        delta(1000, 3, domain="raw"),
        delta(1000, 4, some=True, interpolation="hold"),
        poly(5),
        delta(1000, 6, names=["quats", "means"], rotation="mul_left", dtype=np.float16),
    )
    moving = scene(activation=ACTIVATIONS[2], motion=terms)
    device = OnDevice(moving)
    for t in TIMES:
        assert_agrees(device.at(t), moving, t)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), t=st.floats(-3, 5), count=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_random_scenes(data, t, count, seed) -> None:
    coefficients = data.draw(st.sampled_from([0, 1, 4, 9, 16]))
    terms: list[Motion] = []
    for k in range(data.draw(st.integers(0, 4))):
        if data.draw(st.booleans()):
            terms.append(poly(seed + k, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))))
            continue
        raw = not any(term.domain == "activated" for term in terms) and data.draw(st.booleans())
        names = data.draw(st.lists(st.sampled_from(sorted(WIDTHS)), min_size=1, unique=True))
        terms.append(
            delta(
                count,
                seed + k,
                names=names,
                dtype=data.draw(st.sampled_from([np.float32, np.float16])),
                some=data.draw(st.booleans()),
                domain="raw" if raw else "activated",
                rotation="add" if raw else data.draw(st.sampled_from(["add", "mul_left", "mul_right"])),
                interpolation=data.draw(st.sampled_from(["hold", "linear"])),
            )
        )
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    moving = scene(count, seed, coefficients=coefficients, activation=activation, motion=tuple(terms))
    assert_agrees(OnDevice(moving).at(t), moving, t)


def test_half_precision_is_rounded_single_precision() -> None:
    moving = scene(coefficients=4, activation=ACTIVATIONS[2], motion=(delta(1000, domain="raw"), poly()))
    single, half = OnDevice(moving).at(0.7), OnDevice(moving, np.float16).at(0.7)
    for got, exact in zip(half, single):
        np.testing.assert_array_equal(got, exact.astype(np.float16))


def test_what_is_not_asked_for_is_not_written() -> None:
    moving = scene(motion=(poly(),))
    whole = OnDevice(moving).at(1.0)
    for name in Gaussians._fields:
        device = OnDevice(moving, poison=0x55)
        only = StoredGaussians(**{name: getattr(device.out, name)})
        moved = device.at(1.0, out=only)
        for field in Gaussians._fields:
            got = getattr(moved, field)
            if field == name:
                np.testing.assert_array_equal(got, getattr(whole, field))
            else:
                assert (got.view(np.uint8) == 0x55).all()


def test_what_is_not_finite_stays_so_and_does_not_spread() -> None:
    good = scene(motion=(delta(1000, names=["scales", "opacities"]), poly()))
    bad = scene(motion=good.motion)
    for array in (bad.means, bad.quats, bad.scales, bad.opacities):
        array[7] = np.nan
    ours, expected = OnDevice(bad).at(0.7), OnDevice(good).at(0.7)
    for got, rest in zip(ours[:4], expected):
        assert np.isnan(got[7]).all()
        np.testing.assert_array_equal(np.delete(got, 7, 0), np.delete(rest, 7, 0))


def test_zero_quaternions_stay_zero() -> None:
    still = scene(3)
    still.quats[1] = 0.0
    assert not OnDevice(still).at(0.0).quats[1].any()


def test_groups_beyond_the_term_and_rows_beyond_the_data_stand_still() -> None:
    # The host checks scenes; the kernel still must not read what is not there.
    moving = scene(motion=(poly(), delta(1000, some=True)))
    expected = scene().evaluate(1.0)
    device = OnDevice(moving)
    device.options["groups"].copy_from(np.full(1000, GROUPS, np.int32))
    device.options["terms"][1].row_of.copy_from(np.full(1000, 500, np.int32))
    for got, wanted in zip(device.at(1.0), expected):
        np.testing.assert_allclose(got, wanted, atol=2 * EPS)  # quaternions are normalised on both sides


def test_without_groups_nothing_turns() -> None:
    moving = scene(motion=(poly(),))
    np.testing.assert_array_equal(OnDevice(moving).at(1.0, groups=None).means, moving.means)


def test_no_gaussians() -> None:
    OnDevice(scene(0, motion=(poly(),))).at(1.0)


def test_a_replayed_graph_reads_the_time_that_lies_there() -> None:
    moving = scene(motion=(poly(), delta(1000)))
    device = OnDevice(moving)
    device.time.copy_from(np.array([0.0]))
    device.launch()  # loads the kernels
    with Graph(device.stream) as graph:
        device.launch()
    for t in (0.3, -1.0, 2.0):
        device.time.copy_from(np.array([t]))
        graph.launch()
        replayed = device.moved()
        for got, direct in zip(replayed, OnDevice(moving).at(t)):
            np.testing.assert_array_equal(got, direct)


def test_streams_of_other_libraries() -> None:
    torch = pytest.importorskip("torch")
    moving = scene(motion=(poly(),))
    device, expected = OnDevice(moving), OnDevice(moving).at(1.0)
    device.time.copy_from(np.array([1.0]))
    stream = torch.cuda.Stream()
    device.launch(stream=stream)
    stream.synchronize()
    np.testing.assert_array_equal(device.moved().means, expected.means)


def test_offsets_beyond_32_bits() -> None:
    count = 12_000_000  # 2.3 GB of coefficients
    stored, moved = DeviceArray((count, 16, 3)), DeviceArray((count, 16, 3))
    stored.fill_bytes(0)
    moved.fill_bytes(0xFF)
    time = DeviceArray.from_numpy(np.zeros(1))
    cuda.move_gaussians(StoredGaussians(colors=stored), time=time, out=StoredGaussians(colors=moved))
    tail = moved.view((1000, 16, 3), offset=moved.nbytes - 1000 * 16 * 3 * 4)
    assert not tail.to_numpy().any()
