"""Scenes: activation, evaluation, and a file that comes back bit for bit or is refused by name."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidRequest, InvalidScene
from edge4d.runtime.motion import Delta, Poly
from edge4d.runtime.scene import Activation, Scene4D
from edge4d.runtime.scene_files import ARRAYS, MAX_HEADER

FLOAT32 = 1e-6  # a few roundings on numbers of size one


def f32(values):
    return np.asarray(values, np.float32)


def make_scene(N=4, sh=0, **changes):
    random = np.random.default_rng(3)
    terms = (
        Delta(
            np.array([0.0, 0.5]),
            random.normal(size=(2, 2, 4)).astype(np.float16),
            {"means": (1, 4), "opacities": (0, 1)},
            np.arange(2, dtype=np.int32),
        ),
        Poly(*(f32(random.normal(size=shape)) for shape in ((3, 3), (3, 2, 3), (3, 1, 3)))),
    )
    fields = {
        "means": f32(random.normal(size=(N, 3))),
        "quats": f32(random.normal(size=(N, 4))),
        "scales": f32(random.random((N, 3))),
        "opacities": f32(random.random(N)),
        "colors": f32(random.random((N, sh, 3) if sh else (N, 3))),
        "groups": (np.arange(N) % 3).astype(np.int32),
        "camera": Camera.from_fov(448, 256, 61.7),
        "motion": terms if N >= 2 else (),
        "t1": 1.9,
        "fps": 12.0,
        "background": (0.1, 0.2, 0.3),
        "source": "a street, é",
    }
    return Scene4D(**{**fields, **changes})


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def assert_same(a, b):
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert x.tobytes() == y.tobytes()
    for field in dataclasses.fields(Scene4D):
        if field.name not in (*ARRAYS, "camera", "motion"):
            assert getattr(a, field.name) == getattr(b, field.name)
    assert (a.camera.width, a.camera.height) == (b.camera.width, b.camera.height)
    assert (a.camera.K == b.camera.K).all()
    assert (a.camera.c2w == b.camera.c2w).all()
    assert [type(term) for term in a.motion] == [type(term) for term in b.motion]
    for x, y in zip(a.motion, b.motion):
        assert x.settings() == y.settings()
        assert {n: (t.dtype, t.shape, t.tobytes()) for n, t in x.tensors().items()} == {
            n: (t.dtype, t.shape, t.tobytes()) for n, t in y.tensors().items()
        }


def test_a_scene_without_activation_is_itself_but_for_the_length_of_quaternions():
    scene = make_scene(motion=())
    found = scene.evaluate(0.3)
    assert found.means is scene.means
    assert found.colors is scene.colors
    np.testing.assert_allclose(np.linalg.norm(found.quats, axis=-1), 1.0, atol=FLOAT32)
    np.testing.assert_allclose(found.quats * np.linalg.norm(scene.quats, axis=-1)[:, None], scene.quats, atol=FLOAT32)


def test_activations_follow_their_formulas():
    raw = make_scene(motion=(), quats=f32(np.zeros((4, 4))))
    gvf = Activation("softplus", "sigmoid", -5.51946, -2.19722, 9e-4, (1.0, 0.0, 0.0, 0.0))
    found = dataclasses.replace(raw, activation=gvf).evaluate(0.0)
    softplus = np.log1p(np.exp(raw.scales.astype(float) - 5.51946))
    np.testing.assert_allclose(found.scales, np.sqrt(softplus**2 + 9e-4**2), rtol=FLOAT32)
    np.testing.assert_allclose(
        found.opacities, 1.0 / (1.0 + np.exp(2.19722 - raw.opacities.astype(float))), rtol=FLOAT32
    )
    assert found.quats.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 4
    inria = dataclasses.replace(raw, activation=Activation("exp", "sigmoid")).evaluate(0.0)
    np.testing.assert_allclose(inria.scales, np.exp(raw.scales.astype(float)), rtol=FLOAT32)
    assert all(array.dtype == np.float32 for array in (*found, *inria))


def test_extreme_raw_values_saturate_without_warnings():
    values = f32([-1e30, -100.0, 100.0, 1e30])
    scene = make_scene(motion=(), opacities=values, activation=Activation("softplus", "sigmoid"))
    assert scene.evaluate(0.0).opacities.tolist() == [0.0, 0.0, 1.0, 1.0]
    exploding = make_scene(motion=(), scales=f32(np.full((4, 3), 1e3)), activation=Activation("exp"))
    assert np.isinf(exploding.evaluate(0.0).scales).all()  # the rasterizer's to skip


def test_raw_differences_come_before_the_activation_and_activated_ones_after():
    data = f32(np.full((1, 4, 1), 0.5))
    layout = {"opacities": (0, 1)}
    activation = Activation(opacity="sigmoid")
    raw = make_scene(motion=(Delta(np.zeros(1), data, layout, domain="raw"),), activation=activation)
    np.testing.assert_allclose(
        raw.evaluate(0.0).opacities, 1.0 / (1.0 + np.exp(-(raw.opacities.astype(float) + 0.5))), atol=FLOAT32
    )
    after = make_scene(motion=(Delta(np.zeros(1), data, layout),), activation=activation)
    expected = np.clip(1.0 / (1.0 + np.exp(-after.opacities.astype(float))) + 0.5, 0.0, 1.0)
    np.testing.assert_allclose(after.evaluate(0.0).opacities, expected, atol=FLOAT32)


def test_terms_are_applied_in_order():
    scene = make_scene()
    delta, poly = scene.motion
    gaussians = scene.without_motion().evaluate(0.0)
    expected = poly.apply(delta.apply(gaussians, scene._groups, 0.4), scene._groups, 0.4)
    found = scene.evaluate(0.4)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
    assert len(scene.without_motion().motion) == 0


def test_evaluating_twice_gives_the_same_bits():
    scene = make_scene()
    first = [array.tobytes() for array in scene.evaluate(1.0)]
    scene.evaluate(0.2)
    assert [array.tobytes() for array in scene.evaluate(1.0)] == first


def test_gaussians_that_are_not_finite_stay_alone():
    means = f32(np.random.default_rng(0).normal(size=(4, 3)))
    broken = means.copy()
    broken[2] = np.nan
    changed, whole = (make_scene(means=m).evaluate(0.7).means for m in (broken, means))
    np.testing.assert_array_equal(np.delete(changed, 2, 0), np.delete(whole, 2, 0))


@pytest.mark.parametrize("t", [np.nan, np.inf])
def test_times_that_are_not_finite_are_refused(t):
    with pytest.raises(InvalidRequest):
        make_scene().evaluate(t)


@pytest.mark.parametrize(("sh", "degree"), [(0, -1), (1, 0), (4, 1), (9, 2), (16, 3)])
def test_the_degree_of_the_harmonics_follows_from_the_shape(sh, degree):
    assert make_scene(sh=sh).sh_degree == degree


@pytest.mark.parametrize(
    "changes",
    [
        {"means": np.zeros((4, 3))},
        {"means": f32(np.zeros((3, 3)))},
        {"means": None},
        {"quats": f32(np.zeros((4, 3)))},
        {"opacities": f32(np.zeros((4, 1)))},
        {"colors": f32(np.zeros((4, 2, 3)))},
        {"colors": f32(np.zeros((4, 4)))},
        {"colors": f32(np.zeros(4))},
        {"groups": np.zeros(4, np.int64)},
        {"groups": np.array([0, 1, 2, 3], np.int32)},  # the polynomial has groups 0, 1, 2
        {"groups": np.array([0, 1, 2, -1], np.int32)},
        {"groups": np.array([0, 1, 2, 2**30], np.int32), "motion": ()},
        {"t0": 2.0},
        {"t1": np.nan},
        {"fps": 0.0},
        {"fps": "12"},
        {"eps2d": -0.1},
        {"background": (0.0, 0.0)},
        {"background": (0.0, 0.0, np.nan)},
        {"background": "red"},
        {"metric": 1},
        {"antialiased": None},
        {"source": None},
        {"source": "x" * 2000},
        {"camera": None},
        {"activation": "exp"},
    ],
)
def test_scenes_that_do_not_fit_together_are_refused(changes):
    with pytest.raises(InvalidScene):
        make_scene(**changes)


def test_raw_terms_after_activated_ones_are_refused():
    raw = Delta(np.zeros(1), f32(np.zeros((1, 4, 3))), {"means": (0, 3)}, domain="raw")
    with pytest.raises(InvalidScene, match="raw"):
        make_scene(motion=(*make_scene().motion, raw))


@pytest.mark.parametrize(
    "fields", [{"scale": "log"}, {"opacity": ["sigmoid"]}, {"quat_bias": (1, 0)}, {"scale_bias": np.inf}]
)
def test_unknown_activations_are_refused(fields):
    with pytest.raises(InvalidScene):
        Activation(**fields)


@pytest.mark.parametrize("sh", [0, 1, 16])
@pytest.mark.parametrize("N", [0, 1, 7])
def test_a_scene_comes_back_bit_for_bit(folder, N, sh):
    scene = make_scene(N, sh, activation=Activation("softplus", "sigmoid", -5.5, -2.2, 9e-4, (1.0, 0.0, 0.0, 0.0)))
    scene.save(folder / "scene.safetensors")
    assert_same(scene, Scene4D.load(str(folder / "scene.safetensors")))
    assert len(list(folder.glob("*partial*"))) == 0


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=12, max_size=12), st.floats(0.0, 1.0), st.floats(0.01, 179.0))
def test_every_bit_pattern_survives(folder, bits, number, fov):
    scene = make_scene(
        1,
        means=np.frombuffer(bits, np.float32).reshape(1, 3),
        background=(number, 0.1, 1.0 - number),
        camera=Camera.from_fov(448, 256, fov),
    )
    scene.save(folder / "bits.safetensors")
    assert_same(scene, Scene4D.load(folder / "bits.safetensors"))


def golden():
    return Scene4D(
        means=f32([[1, 2, 3]]),
        quats=f32([[1, 0, 0, 0]]),
        scales=f32([[0.5, 0.25, 0.125]]),
        opacities=f32([0.75]),
        colors=f32([[0.0, 0.5, 1.0]]),
        groups=np.array([1], np.int32),
        camera=Camera.from_intrinsics(4, 2, 3.0, 3.0, 2.0, 1.0),
        motion=(Poly(f32([[0, 0, 0], [1, 2, 3]]), f32(np.zeros((2, 0, 3))), f32([[[0, 0, 0]], [[0, 1, 0]]])),),
        t1=2.0,
        source="golden",
    )


GOLDEN_HEADER = (
    '{"activation":{"opacity":"identity","opacity_bias":0.0,"quat_bias":[0.0,0.0,0.0,0.0],"scale":"identity",'
    '"scale_bias":0.0,"scale_floor":0.0},"antialiased":false,"background":[0.0,0.0,0.0],"camera":{"K":[[3.0,0.0,2.0],'
    '[0.0,3.0,1.0],[0.0,0.0,1.0]],"c2w":[[1.0,0.0,0.0,0.0],[0.0,1.0,0.0,0.0],[0.0,0.0,1.0,0.0],[0.0,0.0,0.0,1.0]],'
    '"height":2,"width":4},"eps2d":0.3,"fps":12.0,"metric":true,"motion":[{"kind":"poly"}],"source":"golden","t0":0.0,'
    '"t1":2.0,"version":1}'
)


def split(data):
    """The container's JSON and what follows it."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(container, tail):
    text = container if isinstance(container, bytes) else json.dumps(container).encode()
    return struct.pack("<Q", len(text)) + text + tail


GOLDEN_ENTRIES = (
    ("colors", "F32", "[1,3]", [0.0, 0.5, 1.0]),
    ("means", "F32", "[1,3]", [1.0, 2.0, 3.0]),
    ("motion.0.angular", "F32", "[2,1,3]", [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
    ("motion.0.centres", "F32", "[2,3]", [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]),
    ("motion.0.linear", "F32", "[2,0,3]", []),
    ("opacities", "F32", "[1]", [0.75]),
    ("quats", "F32", "[1,4]", [1.0, 0.0, 0.0, 0.0]),
    ("scales", "F32", "[1,3]", [0.5, 0.25, 0.125]),
    ("groups", "I32", "[1]", [1]),
)


def golden_bytes():
    """The file of `golden()`, put together by hand."""
    text, data = '{"__metadata__":{"edge4d":' + json.dumps(GOLDEN_HEADER) + "}", b""
    for name, dtype, shape, values in GOLDEN_ENTRIES:
        start = len(data)
        data += struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'i'}", *values)
        text += f',"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{len(data)}]}}'
    text += "}"
    text += " " * (-len(text) % 8)  # so that the arrays are aligned
    return struct.pack("<Q", len(text)) + text.encode() + data


def test_the_file_is_the_same_to_the_byte(folder):
    golden().save(folder / "golden.safetensors")
    assert (folder / "golden.safetensors").read_bytes() == golden_bytes()
    assert_same(load(folder, golden_bytes()), golden())


@pytest.fixture(scope="session")
def saved(folder):
    make_scene().save(folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def load(folder, data):
    (folder / "hostile.safetensors").write_bytes(data)
    return Scene4D.load(folder / "hostile.safetensors")


def edited(saved, change, header=True):
    """The file after `change` edits its scene header (or the container's)."""
    container, tail = split(saved)
    if header:
        inner = json.loads(container["__metadata__"]["edge4d"])
        change(inner)
        container["__metadata__"]["edge4d"] = json.dumps(inner)
    else:
        change(container)
    return joined(container, tail)


def test_every_truncation_is_refused(folder, saved):
    for length in [*range(40), *range(40, len(saved), 97), len(saved) - 1]:
        with pytest.raises(InvalidScene):
            load(folder, saved[:length])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(version=2),
        lambda h: h.update(version=True),
        lambda h: h.update(version=[1]),
        lambda h: h.pop("version"),
        lambda h: h.pop("fps"),
        lambda h: h.update(surprise=1),
        lambda h: h.update(t1=float("nan")),
        lambda h: h.update(t1=float("inf")),
        lambda h: h.update(fps=10**400),
        lambda h: h.update(fps=None),
        lambda h: h.update(background=[0, 0]),
        lambda h: h.update(background={"0": 0, "1": 0, "2": 0}),
        lambda h: h.update(source=7),
        lambda h: h.update(activation=[]),
        lambda h: h["activation"].update(scale="log"),
        lambda h: h["activation"].pop("scale"),
        lambda h: h.update(camera=None),
        lambda h: h["camera"].update(width=10**9),
        lambda h: h["camera"].update(K=[[1, 2], [3]]),
        lambda h: h["camera"].update(c2w="here"),
        lambda h: h["camera"].update(fov=60),
        lambda h: h.update(motion={}),
        lambda h: h.update(motion=[7]),
        lambda h: h.update(motion=[]),  # its arrays are then left over
        lambda h: h.update(motion=h["motion"] * 1000),
        lambda h: h["motion"][0].update(kind="hex"),
        lambda h: h["motion"][0].update(kind=["delta"]),
        lambda h: h["motion"][0].update(data=[1]),
        lambda h: h["motion"][0].update(domain=7),
        lambda h: h["motion"][0].update(layout={"means": [0, 10**30]}),
        lambda h: h["motion"][0].pop("layout"),
        lambda h: h["motion"][1].update(self=1),
        lambda h: h["motion"].reverse(),
    ],
)
def test_headers_that_make_no_sense_are_refused(folder, saved, change):
    with pytest.raises(InvalidScene, match=r"hostile\.safetensors"):
        load(folder, edited(saved, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("__metadata__"),
        lambda c: c.update(__metadata__=7),
        lambda c: c.update(__metadata__={"format": "pt"}),
        lambda c: c.update(__metadata__={"edge4d": 7}),
        lambda c: c.update(__metadata__={"edge4d": "[1]"}),
        lambda c: c.pop("means"),
        lambda c: c.update(extra=c["means"]),
        lambda c: c.update(extra=7),
        lambda c: c["means"].update(dtype="F64"),
        lambda c: c["means"].update(dtype="I32"),
        lambda c: c["means"].update(dtype="BF16"),
        lambda c: c["means"].update(dtype=["F32"]),
        lambda c: c["means"].update(shape=[3, 4]),
        lambda c: c["means"].update(shape=[2**40, 2**40, 3]),
        lambda c: c["means"].update(shape=[-4, -3]),
        lambda c: c["means"].update(shape=[True, 12]),
        lambda c: c["means"].update(shape=12),
        lambda c: c["means"].update(data_offsets=[0, 2**62]),
        lambda c: c["means"].update(data_offsets=[0]),
        lambda c: c["means"].update(data_offsets=c["scales"]["data_offsets"]),
        lambda c: c["groups"].update(shape=[2, 2]),
        lambda c: c.update({"motion.0.data": {**c["motion.0.data"], "shape": [4, 1, 4]}}),
    ],
)
def test_containers_that_make_no_sense_are_refused(folder, saved, change):
    with pytest.raises(InvalidScene):
        load(folder, edited(saved, change, header=False))


def test_repeated_names_are_refused(folder, saved):
    container, tail = split(saved)
    text = json.dumps(container).encode()
    twice = b'{"means": ' + json.dumps(container["means"]).encode() + b", " + text[1:]
    with pytest.raises(InvalidScene, match="twice"):
        load(folder, joined(twice, tail))
    container["__metadata__"]["edge4d"] = '{"version": 1, ' + container["__metadata__"]["edge4d"][1:]
    with pytest.raises(InvalidScene, match="twice"):
        load(folder, joined(container, tail))


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER + 1, 2**31, 2**63, 2**64 - 1])
def test_header_lengths_out_of_bounds_are_refused(folder, saved, length):
    with pytest.raises(InvalidScene, match="header"):
        load(folder, struct.pack("<Q", length) + saved[8:])


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"null", b"{} {}", b"1" * 10_000])
def test_headers_that_are_no_json_object_are_refused(folder, text):
    with pytest.raises(InvalidScene):
        load(folder, joined(text, b""))


def test_groups_out_of_range_in_the_file_are_refused(folder, saved):
    container, tail = split(saved)
    begin, end = container["groups"]["data_offsets"]
    tail = tail[:begin] + np.full(4, 3, np.int32).tobytes() + tail[end:]
    with pytest.raises(InvalidScene, match="group"):
        load(folder, joined(container, tail))


def test_missing_files_and_folders_are_refused(folder):
    for path in (folder, folder / "nothing.safetensors"):
        with pytest.raises(InvalidScene, match="not a file"):
            Scene4D.load(path)
    with pytest.raises(InvalidScene, match="written"):
        golden().save(folder / "no" / "such" / "folder.safetensors")


def test_a_failed_write_keeps_the_old_file(folder, monkeypatch):
    path = folder / "kept.safetensors"
    golden().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InvalidScene, match="disk full"):
        make_scene().save(path)
    assert path.read_bytes() == before
    assert list(folder.glob("*partial*")) == []


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_mutated_files_load_or_are_refused_by_name(folder, saved, data):
    mutant = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the edits go to the first kilobytes, where the headers are.
        place = data.draw(st.integers(0, len(mutant) - 1) | st.integers(0, min(2500, len(mutant) - 1)))
        mutant[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        scene = load(folder, bytes(mutant))
    except InvalidScene:
        return
    scene.evaluate(0.5)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200))
def test_rubbish_is_refused(folder, rubbish):
    with pytest.raises(InvalidScene):
        load(folder, rubbish)
