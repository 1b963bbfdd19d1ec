"""PLY files: to the byte what other programs read, back within float32, and hostile ones refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidPly
from edge4d.runtime.gaussians import Gaussians
from edge4d.runtime.motion import Poly
from edge4d.runtime.ply import C0, MAX_HEADER, SMALLEST_OPACITY, SMALLEST_SCALE, read_ply, write_ply, write_ply_sequence
from edge4d.runtime.scene import Scene4D

EPSILON = float(np.finfo(np.float32).eps)


def f32(values):
    return np.asarray(values, np.float32)


def make_gaussians(N=6, sh=0):
    random = np.random.default_rng(5)
    return Gaussians(
        f32(random.normal(size=(N, 3)) * 10.0),
        f32(random.normal(size=(N, 4))),
        f32(np.exp(random.normal(size=(N, 3)) * 3.0)),
        f32(random.random(N)),
        f32(random.normal(size=(N, sh, 3)) if sh else random.random((N, 3))),
    )


ONE = Gaussians(f32([[1, 2, 3]]), f32([[0.5, -0.5, 0.5, 0.5]]), f32([[1, 1, 1]]), f32([0.5]), f32([[0.5, 0.5, 0.5]]))

ONE_FILE = b"\n".join(
    [
        *(b"ply", b"format binary_little_endian 1.0", b"element vertex 1"),
        *(b"property float x", b"property float y", b"property float z"),
        *(b"property float nx", b"property float ny", b"property float nz"),
        *(b"property float f_dc_0", b"property float f_dc_1", b"property float f_dc_2"),
        b"property float opacity",
        *(b"property float scale_0", b"property float scale_1", b"property float scale_2"),
        *(b"property float rot_0", b"property float rot_1", b"property float rot_2", b"property float rot_3"),
        b"end_header",
        # normals 0; a colour of 0.5 is f_dc 0; an opacity of 0.5 is logit 0; a scale of 1 is log 0
        struct.pack("<17f", 1, 2, 3, *[0] * 3, *[0] * 3, 0, *[0] * 3, 0.5, -0.5, 0.5, 0.5),
    ]
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ply")


def read(folder, data):
    (folder / "hostile.ply").write_bytes(data)
    return read_ply(folder / "hostile.ply")


def test_the_file_is_the_same_to_the_byte(folder):
    assert write_ply(folder / "one.ply", ONE) == 1
    assert (folder / "one.ply").read_bytes() == ONE_FILE


def test_harmonics_are_channel_major_in_the_file(folder):
    colors = np.arange(12, dtype=np.float32).reshape(1, 4, 3)  # coefficient k of channel c is 3 k + c
    write_ply(folder / "sh.ply", ONE._replace(colors=colors))
    header, body = (folder / "sh.ply").read_bytes().split(b"end_header\n")
    names = [line.split()[-1] for line in header.decode().splitlines() if line.startswith("property")]
    values = dict(zip(names, struct.unpack(f"<{len(names)}f", body)))
    assert [values[f"f_dc_{i}"] for i in range(3)] == [0.0, 1.0, 2.0]
    assert [values[f"f_rest_{i}"] for i in range(9)] == [3.0, 6.0, 9.0, 4.0, 7.0, 10.0, 5.0, 8.0, 11.0]
    assert "f_rest_9" not in values
    assert (read_ply(folder / "sh.ply").colors == colors).all()


@pytest.mark.parametrize("sh", [0, 1, 4, 9, 16])
@pytest.mark.parametrize("N", [0, 1, 6])
def test_gaussians_come_back_within_float32(folder, N, sh):
    before = make_gaussians(N, sh)
    assert write_ply(folder / "back.ply", before) == N
    scene = read_ply(folder / "back.ply")
    after = scene.evaluate(0.0)
    assert scene.sh_degree == max(0, round(sh**0.5) - 1)
    assert (after.means == before.means).all()
    assert (scene.quats == before.quats).all()
    # Half a unit of a logarithm of size up to 16 is a relative error of 8 epsilon; exp adds one.
    np.testing.assert_allclose(after.scales, before.scales, rtol=9 * EPSILON)
    # The logit's half unit becomes at most p (1 - p) |logit| epsilon / 2 < epsilon / 4; the logistic adds one.
    np.testing.assert_allclose(after.opacities, before.opacities, atol=1.25 * EPSILON)
    if sh:
        assert (after.colors == before.colors).all()
    else:
        # f_dc is at most 1.8 in size: half its unit, times C0, and the sum's own rounding.
        np.testing.assert_allclose(after.colors[:, 0] * C0 + 0.5, before.colors, atol=EPSILON)


@given(st.floats(0.0, 1.0, width=32), st.floats(0.0, 2.0**20, width=32))
@settings(deadline=None, max_examples=100)
def test_every_opacity_and_scale_is_written_as_a_finite_number(folder, opacity, scale):
    assert write_ply(folder / "any.ply", ONE._replace(opacities=f32([opacity]), scales=f32([[scale] * 3]))) == 1
    after = read_ply(folder / "any.ply").evaluate(0.0)
    np.testing.assert_allclose(after.opacities, [opacity], atol=1.25 * EPSILON + SMALLEST_OPACITY)
    # The logarithm of 1e-20 is 46: its half unit is 2e-6, 32 epsilon.
    np.testing.assert_allclose(after.scales, [[scale] * 3], rtol=33 * EPSILON, atol=2 * SMALLEST_SCALE)


def test_gaussians_that_are_not_finite_are_left_out(folder):
    before = make_gaussians()
    for array, row in ((before.means, 0), (before.scales, 2), (before.opacities, 3), (before.colors, 5)):
        array[row] = np.nan
    before.quats[1, 0] = np.inf
    assert write_ply(folder / "nan.ply", before) == 1
    assert (read_ply(folder / "nan.ply").means == before.means[4]).all()


def test_the_camera_is_the_given_one_or_a_default(folder):
    write_ply(folder / "one.ply", ONE)
    assert read_ply(folder / "one.ply").camera.width == 448
    camera = Camera.from_fov(64, 32, 40.0)
    scene = read_ply(folder / "one.ply", camera=camera)
    assert scene.camera is camera
    assert scene.motion == ()


def test_a_sequence_has_a_file_per_frame(folder):
    scene = Scene4D(
        *ONE,
        groups=np.ones(1, np.int32),
        camera=Camera.from_fov(64, 32, 40.0),
        motion=(Poly(f32(np.zeros((2, 3))), f32([[[0, 0, 0]], [[0, 0, 2]]]), f32(np.zeros((2, 0, 3)))),),
    )
    paths = write_ply_sequence(folder / "frames", scene, [0.0, 0.5, 1.0])
    assert [path.name for path in paths] == ["frame0001.ply", "frame0002.ply", "frame0003.ply"]
    assert [float(read_ply(path).means[0, 2]) for path in paths] == [3.0, 4.0, 5.0]
    assert sorted(path.name for path in (folder / "frames").iterdir()) == [path.name for path in paths]


def columns(kind="<f4", extra=(), **values):
    """A structured row with the required properties (1, 2, ... unless given), in an unusual order."""
    names = ["rot_3", "rot_0", "opacity", "z", "f_dc_2", "x", "scale_1", "scale_0", "f_dc_0", "rot_1", "y"]
    names += ["f_dc_1", "scale_2", "rot_2"]
    row = np.zeros(1, np.dtype([(name, kind) for name in names] + list(extra)))
    for i, name in enumerate(names):
        row[name] = values.get(name, i + 1.0)
    return row


PLY_NAMES = {"<f4": "float", "<f8": "double", "<i4": "int", "|u1": "uchar"}


def ply(rows, form="binary_little_endian 1.0", before=b"", ending="\n", count=None):
    """A PLY file of structured rows."""
    header = [
        "ply",
        f"format {form}",
        "comment made by hand",
        *(["element camera 1", "property int id"] if before else []),
    ]
    header.append(f"element vertex {len(rows) if count is None else count}")
    header += [f"property {PLY_NAMES[rows.dtype[name].str]} {name}" for name in rows.dtype.names]
    return ending.join([*header, "end_header", ""]).encode() + before + rows.tobytes()


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_order_doubles_spare_properties_and_earlier_elements_are_read(folder, kind, ending):
    rows = columns(kind, extra=[("red", "|u1"), ("label", "<i4")])
    scene = read(folder, ply(rows, before=b"\1\2\3\4", ending=ending) + b"trailing bytes")
    assert scene.means.tolist() == [[rows["x"][0], rows["y"][0], rows["z"][0]]]
    assert scene.quats.tolist() == [[rows[f"rot_{i}"][0] for i in range(4)]]
    assert scene.scales.tolist() == [[rows[f"scale_{i}"][0] for i in range(3)]]
    assert scene.colors.tolist() == [[[rows[f"f_dc_{i}"][0] for i in range(3)]]]
    assert scene.opacities.tolist() == [rows["opacity"][0]]
    assert scene.means.dtype == np.float32


def renamed(name, new):
    return ply(columns()).replace(f" {name}\n".encode(), f" {new}\n".encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a PLY"),
        (b"plyx", "not a PLY"),
        (b"ply\n", "does not end"),
        (b"ply\n" + b"comment\n" * (MAX_HEADER // 8) + ply(columns())[4:], "does not end"),
        (ply(columns(), form="ascii 1.0"), "little-endian"),
        (ply(columns(), form="binary_big_endian 1.0"), "little-endian"),
        (b"ply\nend_header\n", "little-endian"),
        (ply(columns())[:-1], "too short"),
        (ply(columns(), count=2), "too short"),
        (ply(columns(), count=10**17), "too short"),
        (ply(columns(), count=10**30), "makes no sense"),
        (ply(columns(), count=-1), "makes no sense"),
        (ply(columns(), count="²"), "makes no sense"),
        (ply(columns()).replace(b"element vertex 1\n", b"element face 0\n"), "no element"),
        (ply(columns()).replace(b"element vertex 1\n", b""), "makes no sense"),
        (renamed("rot_3", "rot_4"), "lack"),
        (renamed("opacity", "alpha"), "lack"),
        (renamed("rot_3", "x"), "makes no sense"),
        (renamed("x", "packed_position"), "compressed"),
        (ply(columns()).replace(b"float x", b"int x"), "floating-point"),
        (ply(columns()).replace(b"float x", b"half x"), "makes no sense"),
        (ply(columns()).replace(b"property float x\n", b"property list uchar int x\n"), "list"),
        (ply(columns(extra=[("f_rest_0", "<f4")])), "f_rest"),
        (ply(columns(extra=[(f"f_rest_{i}", "<f4") for i in range(1, 10)])), "f_rest"),
        (ply(columns(x=np.nan)), "NaN"),
        (ply(columns(opacity=np.inf)), "Inf"),
        (ply(columns("<f8", x=1e300)), "float32"),
    ],
)
def test_files_that_are_no_gaussian_ply_are_refused(folder, data, message):
    with pytest.raises(InvalidPly, match=message):
        read(folder, data)


def test_missing_files_and_folders_are_refused(folder):
    for path in (folder, folder / "nothing.ply"):
        with pytest.raises(InvalidPly, match="not a file"):
            read_ply(path)
    with pytest.raises(InvalidPly, match="written"):
        write_ply(folder / "no" / "such.ply", ONE)
    (folder / "taken").write_bytes(b"")
    with pytest.raises(InvalidPly, match="made"):
        write_ply_sequence(folder / "taken", read(folder, ONE_FILE), [0.0])


def test_every_truncation_is_refused(folder):
    for length in range(len(ONE_FILE)):
        with pytest.raises(InvalidPly):
            read(folder, ONE_FILE[:length])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_mutated_files_are_read_or_refused_by_name(folder, data):
    mutant = bytearray(ONE_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutant) - 1))
        mutant[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        scene = read(folder, bytes(mutant))
    except InvalidPly:
        return
    scene.evaluate(0.0)
