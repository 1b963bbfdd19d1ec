"""Each format against a pose worked out by hand, and hostile files refused with the line that is wrong.

The hand-made path has two cameras. The second stands 1 m to the right of and 2 m in front of the first, and has turned
90 degrees to the right: in our axes (x right, y down, z forward) its z axis is the first one's x, its x the first's -z.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidCameraPath
from edge4d.runtime.pose_files import FORMATS, MAX_BYTES, read_camera_path
from edge4d.runtime.rotations import quat_from_rotation, quats_from_rotvecs, rotations_from_quats

CAMERA = Camera.from_intrinsics(400, 200, 300.0, 310.0, 190.0, 105.0)

TURNED = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [-1, 0, 0, 2], [0, 0, 0, 1]], np.float64)

# Written by hand from the description above. The half angle is 45 degrees; turning right is positive about y (down).
HALF = math.sqrt(0.5)
KITTI = "1 0 0 0 0 1 0 0 0 0 1 0\n0 0 1 1 0 1 0 0 -1 0 0 2\n"
TUM = f"# timestamp tx ty tz qx qy qz qw\n100.5 0 0 0 0 0 0 1\n100.75 1 0 2 0 {HALF} 0 {HALF}\n"
# World to camera: the transposed rotation turns left, and t = -RT (1, 0, 2) = (2, 0, -1).
COLMAP_IMAGES = f"""# Image list with two lines of data per image:
7 {HALF} 0 {-HALF} 0 2 0 -1 3 b.png
10.5 20.5 -1 11.0 12.0 5
2 1 0 0 0 0 0 0 3 a.png

"""
COLMAP_CAMERAS = "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n3 PINHOLE 800 400 600 620 380 210\n"
REALESTATE = """https://www.youtube.com/watch?v=abc
1000000 0.75 1.5 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0
1250000 0.75 1.5 0.5 0.5 0 0 0 0 -1 2 0 1 0 0 1 0 0 -1
"""
# OpenGL axes: the columns for y and z change sign.
NERFSTUDIO = {
    "camera_type": "perspective",
    "render_width": 800,
    "render_height": 400,
    "fps": 4,
    "seconds": 0.5,
    "keyframes": [{"matrix": "ignored"}],
    "camera_path": [
        {"camera_to_world": [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1], "fov": 90, "aspect": 2},
        {"camera_to_world": [0, 0, -1, 1, 0, -1, 0, 0, -1, 0, 0, 2, 0, 0, 0, 1], "fov": 90, "aspect": 2},
    ],
}

ROUNDING = 1e-12


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("poses")


def write(folder, name, content):
    """One of the hand-made paths, or any content under its format's usual name."""
    path = folder / {"nerfstudio": "path.json", "colmap": "images.txt"}.get(name, f"{name}.txt")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_colmap(folder, images=COLMAP_IMAGES, cameras=COLMAP_CAMERAS):
    (folder / "cameras.txt").write_text(cameras)
    write(folder, "colmap", images)
    return folder


def hand_made(folder, name):
    if name == "colmap":
        return write_colmap(folder)
    texts = {"kitti": KITTI, "tum": TUM, "realestate10k": REALESTATE, "nerfstudio": json.dumps(NERFSTUDIO)}
    return write(folder, name, texts[name])


def poses(path):
    return np.stack([camera.c2w for camera in path.cameras])


EXPECTED_TIMES = {"kitti": 0.1, "tum": 0.25, "colmap": 0.1, "realestate10k": 0.25, "nerfstudio": 0.25}
# COLMAP's 800x400 is twice our size. RealEstate10K: 0.75 widths of 400, 1.5 heights of 200. 90 degrees: half a height.
EXPECTED_INTRINSICS = {
    "kitti": (300.0, 310.0, 190.0, 105.0),
    "tum": (300.0, 310.0, 190.0, 105.0),
    "colmap": (300.0, 310.0, 190.0, 105.0),
    "realestate10k": (300.0, 300.0, 200.0, 100.0),
    "nerfstudio": (100.0, 100.0, 200.0, 100.0),
}


@pytest.mark.parametrize("detected", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_the_hand_made_path_is_read_in_every_format(folder, name, detected):
    path = read_camera_path(hand_made(folder, name), camera=CAMERA, fps=10.0, format=None if detected else name)
    np.testing.assert_allclose(poses(path), [np.eye(4), TURNED], atol=ROUNDING)
    np.testing.assert_allclose(path.times, [0.0, EXPECTED_TIMES[name]], atol=ROUNDING)
    for camera in path.cameras:
        assert camera.intrinsics == pytest.approx(EXPECTED_INTRINSICS[name])
        assert (camera.width, camera.height) == (400, 200)


@pytest.mark.parametrize("name", FORMATS)
def test_scale_multiplies_translations_only(folder, name):
    path = read_camera_path(hand_made(folder, name), camera=CAMERA, fps=10.0, scale=2.5)
    expected = TURNED.copy()
    expected[:3, 3] *= 2.5
    np.testing.assert_allclose(poses(path)[1], expected, atol=ROUNDING)


def test_poses_are_relative_to_the_first_and_start_at_the_camera(folder):
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = rotations_from_quats(quats_from_rotvecs([0.2, -0.4, 0.9])), (5.0, -3.0, 100.0)
    rows = ["".join(f"{number:.17g} " for number in pose[:3].ravel()) for pose in (start, start @ TURNED)]
    path = read_camera_path(write(folder, "kitti", "\n".join(rows)), camera=CAMERA.with_pose(TURNED), fps=10.0)
    # float64 on coordinates of 100 m
    np.testing.assert_allclose(poses(path), [TURNED, TURNED @ TURNED], atol=1e-11)


def test_colmap_images_may_be_given_alone_and_are_ordered_by_name(folder):
    write_colmap(folder)
    path = read_camera_path(folder / "images.txt", camera=CAMERA, fps=10.0)
    np.testing.assert_allclose(poses(path)[1], TURNED, atol=ROUNDING)


def test_another_aspect_is_cropped_to_ours(folder):
    # 1000x400 to 400x200: scale 0.5, and 500 - 400 columns are cut, 50 from each side.
    write_colmap(folder, cameras="3 SIMPLE_PINHOLE 1000 400 600 480 210\n")
    path = read_camera_path(folder, camera=CAMERA, fps=10.0)
    assert path.cameras[0].intrinsics == pytest.approx((300.0, 300.0, 190.0, 105.0))
    # RealEstate10K says 16:9 by fy / fx; in a square picture the height decides.
    text = REALESTATE.replace(" 0.75 1.5 ", " 0.9 1.6 ")
    square = Camera.from_fov(180, 180, 60.0)
    path = read_camera_path(write(folder, "realestate10k", text), camera=square, fps=10.0)
    assert path.cameras[0].intrinsics == pytest.approx((288.0, 288.0, 90.0, 90.0))


def test_nerfstudio_without_fps_takes_ours(folder):
    document = {name: value for name, value in NERFSTUDIO.items() if name != "fps"}
    path = read_camera_path(write(folder, "nerfstudio", json.dumps(document)), camera=CAMERA, fps=10.0)
    np.testing.assert_allclose(path.times, [0.0, 0.1])


def test_comments_blank_lines_commas_and_a_byte_order_mark_are_accepted(folder):
    text = "\ufeff# a comment\n\n" + KITTI.replace(" ", ",\t").replace("\n", "\r\n")
    path = read_camera_path(write(folder, "kitti", text), camera=CAMERA, fps=10.0)
    np.testing.assert_allclose(poses(path)[1], TURNED, atol=ROUNDING)


def test_rotations_rounded_to_four_decimals_become_exact(folder):
    rotation = np.round(rotations_from_quats(quats_from_rotvecs([0.3, 0.5, -0.2])), 4)
    row = " ".join(f"{number:.4f}" for number in np.hstack([rotation, [[1.0], [2.0], [3.0]]]).ravel())
    path = read_camera_path(write(folder, "kitti", KITTI.splitlines()[0] + "\n" + row), camera=CAMERA, fps=10.0)
    found = poses(path)[1][:3, :3]
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=ROUNDING)
    np.testing.assert_allclose(found, rotation, atol=1e-4)  # the rounding of the text


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.floats(-3.0, 3.0)] * 6), min_size=1, max_size=5))
def test_paths_survive_being_written_as_text(folder, numbers):
    path = []
    for n in numbers:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotations_from_quats(quats_from_rotvecs(n[:3])), n[3:]
        path.append(pose)
    relative = np.linalg.inv(path[0]) @ np.stack(path)
    kitti = "\n".join(" ".join(f"{x:.9g}" for x in pose[:3].ravel()) for pose in path)
    tum, flip = "", np.diag([1.0, -1.0, -1.0, 1.0])
    for i, pose in enumerate(path):
        w, x, y, z = quat_from_rotation(pose[:3, :3])
        tum += " ".join(f"{v:.9g}" for v in (i, *pose[:3, 3], x, y, z, w)) + "\n"
    entries = [{"camera_to_world": (pose @ flip).ravel().tolist(), "fov": 50} for pose in path]
    nerfstudio = json.dumps({**NERFSTUDIO, "camera_path": entries})
    for name, text in (("kitti", kitti), ("tum", tum), ("nerfstudio", nerfstudio)):
        found = read_camera_path(write(folder, name, text), camera=CAMERA, fps=10.0)
        # Nine digits of numbers below ten, combined from two poses.
        np.testing.assert_allclose(poses(found), relative, atol=1e-7)


def replaced(text, line, new):
    lines = text.splitlines()
    lines[line - 1] = new
    return "\n".join(lines)


IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("kitti", replaced(KITTI, 2, "1 0 0 0 0 1 0 0 0 0 1"), 2),
        ("kitti", replaced(KITTI, 2, IDENTITY + " 1"), 2),
        ("kitti", replaced(KITTI, 2, "nan 0 0 0 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "1 0 0 inf 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "1 0 0 1e999 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "1 0 0 1e30 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "1e300 0 0 0 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "1 0 0 x 0 1 0 0 0 0 1 0"), 2),
        ("kitti", replaced(KITTI, 2, "2 0 0 0 0 2 0 0 0 0 2 0"), 2),
        ("kitti", replaced(KITTI, 2, "1 0 0 0 0 1 0 0 0 0 -1 0"), 2),
        ("kitti", replaced(KITTI, 2, "0 0 0 0 0 0 0 0 0 0 0 0"), 2),
        ("kitti", b"1 0 0 0\n\xff\xfe\n", 2),
        ("kitti", IDENTITY.encode() + b"\n\0\0\0\0\n", 2),
        ("tum", replaced(TUM, 3, "100.75 1 0 2 0 0 0 2"), 3),
        ("tum", replaced(TUM, 3, "100.75 1 0 2 0 0 0 0"), 3),
        ("tum", replaced(TUM, 3, "100.75 1 0 2 1e200 0 0 0"), 3),
        ("tum", replaced(TUM, 3, "100.5 1 0 2 0 0 0 1"), 3),
        ("tum", replaced(TUM, 3, "100.75 1 0 2 0 0 0"), 3),
        ("realestate10k", replaced(REALESTATE, 3, "1"), 3),
        ("realestate10k", REALESTATE.replace("1250000", "1000000"), 3),
        ("realestate10k", REALESTATE.replace("0.75", "-0.75"), 2),
        ("realestate10k", REALESTATE.replace("0.75", "1e-320"), 2),
        ("realestate10k", REALESTATE.replace("1.5 0.5", "1.5 1e200"), 2),
    ],
)
def test_rows_that_make_no_sense_are_refused_with_their_line(folder, name, text, line):
    if name == "kitti" and isinstance(text, bytes) and text.startswith(b"1 0 0 0\n"):
        text = text.replace(b"1 0 0 0\n", IDENTITY.encode() + b"\n")
    with pytest.raises(InvalidCameraPath, match=f"line {line}:"):
        read_camera_path(write(folder, name, text), camera=CAMERA, fps=10.0, format=name)


@pytest.mark.parametrize(
    ("images", "cameras", "message"),
    [
        (COLMAP_IMAGES, COLMAP_CAMERAS.replace("PINHOLE", "OPENCV"), "line 2: The camera model OPENCV"),
        (COLMAP_IMAGES, "3 SIMPLE_RADIAL 800 400 600 380 210 0.1\n", "line 1: The camera model SIMPLE_RADIAL"),
        (COLMAP_IMAGES, "3\n", "line 1"),
        (COLMAP_IMAGES, "3 PINHOLE 800 400 600 620 380\n", "line 1"),
        (COLMAP_IMAGES, "3 PINHOLE 0 400 600 620 380 210\n", "line 1"),
        (COLMAP_IMAGES, "3 PINHOLE 800 -400 600 620 380 210\n", "line 1"),
        (COLMAP_IMAGES, "4 PINHOLE 800 400 600 620 380 210\n", "line 2: The image's camera"),
        (COLMAP_IMAGES.replace("b.png", "a.png"), COLMAP_CAMERAS, "line 4: Two images"),
        (COLMAP_IMAGES.replace(" b.png", ""), COLMAP_CAMERAS, "line 2: An image has too few"),
        (COLMAP_IMAGES.replace("10.5 20.5 -1 11.0 12.0 5\n", ""), COLMAP_CAMERAS, "line 3: Here should be the points"),
        (COLMAP_IMAGES.replace("7 0.7", "7 9.7"), COLMAP_CAMERAS, "line 2: The quaternion"),
        ("# nothing\n", COLMAP_CAMERAS, "no usable number of poses"),
    ],
)
def test_colmap_folders_that_make_no_sense_are_refused(folder, images, cameras, message):
    with pytest.raises(InvalidCameraPath, match=message):
        read_camera_path(write_colmap(folder, images, cameras), camera=CAMERA, fps=10.0)


def test_a_colmap_folder_needs_both_files(tmp_path):
    with pytest.raises(InvalidCameraPath, match=r"cameras\.txt"):
        read_camera_path(tmp_path, camera=CAMERA, fps=10.0)


def document(**changes):
    return json.dumps({**NERFSTUDIO, **changes})


def entry(**changes):
    return document(camera_path=[NERFSTUDIO["camera_path"][0], {**NERFSTUDIO["camera_path"][1], **changes}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("{", "line 1"),
        ('{\n"camera_path": [}', "line 2"),
        ("[]", "object"),
        ("[" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        ("9" * 10_000, "JSON"),
        (b"\xff\xfe", "JSON"),
        (document(camera_type="equirectangular"), "pinhole"),
        (document(camera_type=7), "pinhole"),
        (document(camera_path=None), "camera_path"),
        (document(camera_path=[7]), "camera_path"),
        (document(camera_path=[]), "no usable number"),
        (document(render_width="800"), "render_width"),
        (document(render_width=True), "render_width"),
        (document(render_height=0), "render_height"),
        (document(render_height=1e9), "render_height"),
        (document(fps=0), "fps"),
        (entry(camera_to_world=[1, 2, 3]), r"camera_path\[1\]"),
        (entry(camera_to_world=None), r"camera_path\[1\]"),
        (entry(camera_to_world=["1"] * 16), r"camera_path\[1\]"),
        (entry(camera_to_world=[math.nan] * 16), r"camera_path\[1\]"),
        (entry(camera_to_world=[10**400] * 16), r"camera_path\[1\]"),
        (entry(camera_to_world=[2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]), r"camera_path\[1\]"),
        (entry(fov=0), "fov"),
        (entry(fov=180), "fov"),
        (entry(fov=None), "fov"),
        (entry(fov=1e-3), "intrinsics"),
    ],
)
def test_camera_path_json_that_makes_no_sense_is_refused(folder, text, message):
    with pytest.raises(InvalidCameraPath, match=message):
        read_camera_path(write(folder, "nerfstudio", text), camera=CAMERA, fps=10.0)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "1 2 3\n", "hello world\n", "a\nb\nc\n"])
def test_unknown_formats_say_what_was_tried(folder, text):
    with pytest.raises(InvalidCameraPath, match=r"kitti.*tum.*realestate10k.*colmap.*nerfstudio"):
        read_camera_path(write(folder, "unknown", text), camera=CAMERA, fps=10.0)


@pytest.mark.parametrize(
    "arguments",
    [{"format": "bvh"}, {"scale": 0.0}, {"scale": math.nan}, {"scale": 1e5}, {"fps": 0.0}, {"fps": math.inf}],
)
def test_impossible_requests_are_refused(folder, arguments):
    far = KITTI.replace(" 2\n", " 2000\n")
    with pytest.raises(InvalidCameraPath):
        read_camera_path(write(folder, "kitti", far), **{"camera": CAMERA, "fps": 10.0, **arguments})


def test_missing_and_enormous_files_are_refused(folder):
    with pytest.raises(InvalidCameraPath, match="not a file"):
        read_camera_path(folder / "nothing.txt", camera=CAMERA, fps=10.0)
    for name in ("huge.txt", "huge.json"):
        with (folder / name).open("wb") as file:
            file.truncate(MAX_BYTES + 1)  # sparse: takes no room
        with pytest.raises(InvalidCameraPath, match="too large"):
            read_camera_path(folder / name, camera=CAMERA, fps=10.0)


def test_too_many_poses_are_refused(folder, monkeypatch):
    monkeypatch.setattr("edge4d.runtime.pose_files.MAX_FRAMES", 3)
    for name, text in (("kitti", (IDENTITY + "\n") * 5), ("nerfstudio", document(camera_path=[{}] * 5))):
        with pytest.raises(InvalidCameraPath, match="too many"):
            read_camera_path(write(folder, name, text), camera=CAMERA, fps=10.0)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_mutated_files_are_read_or_refused_by_name(folder, name, data):
    path = hand_made(folder, name)
    file = path / data.draw(st.sampled_from(["images.txt", "cameras.txt"])) if path.is_dir() else path
    mutant = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(mutant) - 1))
        mutant[place : place + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"nan", b"1e9", b"-", b"\n", b"e"])
        )
        mutant += b" " * (not mutant)
    file.write_bytes(bytes(mutant))
    try:
        path = read_camera_path(path, camera=CAMERA, fps=10.0, format=data.draw(st.sampled_from([None, name])))
    except InvalidCameraPath:
        return
    assert np.isfinite(poses(path)).all()


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=100), st.sampled_from(["kitti", "tum", "realestate10k", "nerfstudio", None]))
def test_rubbish_is_refused(folder, rubbish, format):
    with pytest.raises(InvalidCameraPath):
        read_camera_path(write(folder, "rubbish", rubbish), camera=CAMERA, fps=10.0, format=format)
