"""Animated meshes in GLB files, against the formulas of glTF 2.0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_files import CUBE, TRIANGLES, cube

from edge4d.runtime.errors import InvalidMesh
from edge4d.runtime.glb import read_glb
from edge4d.runtime.rotations import quats_from_rotvecs, rotations_from_quats

ROOT = np.sqrt(0.5)


def xyzw(rotvec) -> np.ndarray:
    return quats_from_rotvecs(rotvec)[[1, 2, 3, 0]]


def vertices(glb, tmp_path, fps=2.0) -> np.ndarray:
    return read_glb(glb.write(tmp_path / "a.glb"), fps).vertices


def test_a_mesh_that_stands_still(tmp_path):
    found = read_glb(cube().write(tmp_path / "a.glb"), 24.0)
    np.testing.assert_array_equal(found.vertices, CUBE[None])
    np.testing.assert_array_equal(found.faces, TRIANGLES)
    np.testing.assert_array_equal(found.colors, np.full((8, 3), np.float32(0.7)))


def test_nodes_in_nodes_that_move(tmp_path):
    """A node turned by a quarter about z moves along its own x; its child, scaled, turns about x meanwhile."""
    glb = cube()
    glb.document["nodes"] = [
        {"rotation": [0, 0, ROOT, ROOT], "children": [1]},
        {"mesh": 0, "scale": [1, 2, 3], "translation": [0, 0, 1]},
        {"mesh": 0},
    ]
    glb.document.update(scene=0, scenes=[{"nodes": [0]}])
    glb.animate(0, "translation", [0, 1], [[0, 0, 0], [4, 0, 0]])
    glb.animate(1, "rotation", [0, 1], [xyzw([0, 0, 0]), xyzw([1.2, 0, 0])])
    found = vertices(glb, tmp_path)
    assert found.shape == (3, 8, 3)  # the third node is not in the scene
    quarter = rotations_from_quats(quats_from_rotvecs([0, 0, np.pi / 2]))
    for frame, share in enumerate((0, 0.5, 1)):
        tilt = rotations_from_quats(quats_from_rotvecs([1.2 * share, 0, 0]))
        expected = (CUBE * [1, 2, 3] @ tilt.T + [0, 0, 1]) @ quarter.T + [4 * share, 0, 0]
        np.testing.assert_allclose(found[frame], expected, atol=1e-6)


def test_skins(tmp_path):
    """Half of the vertices hang on a joint that moves, two on both."""
    glb = cube()
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    bind[1, 3, :3] = (0, 0, -1)  # columns first: the joint is at z = 1
    joints, weights = np.zeros((8, 4)), np.zeros((8, 4))
    joints[:, 1] = 1
    weights[:, 1] = [0, 0, 0, 0, 1, 1, 0.5, 0.25]
    weights[:, 0] = 1 - weights[:, 1]
    glb.attributes["JOINTS_0"] = glb.array(joints, "uint8")
    glb.attributes["WEIGHTS_0"] = glb.array(np.rint(weights * 255), "uint8", normalized=True)
    glb.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": glb.array(bind)}]
    glb.document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},
        {"children": [2]},
        {"translation": [0, 0, 1]},
    ]
    glb.animate(2, "translation", [0, 1], [[0, 0, 1], [0.5, 0, 1]])
    moved = vertices(glb, tmp_path, fps=1.0)
    np.testing.assert_allclose(moved[0], CUBE, atol=1e-6)  # the node that a skinned mesh is in does not matter
    np.testing.assert_allclose(moved[1] - CUBE, np.outer(0.5 * weights[:, 1], [1, 0, 0]), atol=2e-3)  # 8-bit weights


def test_morph_targets(tmp_path):
    glb = cube()
    targets = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    glb.document["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": glb.array(target)} for target in targets]
    glb.document["meshes"][0]["weights"] = [0.5, 0.0]
    np.testing.assert_allclose(vertices(glb, tmp_path), (CUBE + 0.5 * targets[0])[None], atol=1e-6)
    glb.animate(0, "weights", [0, 1], np.array([0, 1, 1, -1], np.float32))
    expected = CUBE + np.einsum("tk,kvc->tvc", [[0, 1], [0.5, 0], [1, -1]], targets)
    np.testing.assert_allclose(vertices(glb, tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("STEP", [0, 2, 6], [0, 0, 2, 2, 6]),
        ("LINEAR", [0, 2, 6], [0, 1, 2, 4, 6]),
        # In-tangent, value, out-tangent: those of t^3 at 0, 1 and 2.
        ("CUBICSPLINE", [0, 0, 0, 3, 1, 3, 12, 8, 12], [0, 0.125, 1, 3.375, 8]),
    ],
)
def test_interpolations(tmp_path, kind, values, expected):
    glb = cube()
    glb.animate(0, "translation", [0, 1, 2], np.outer(values, [1, 0, 0]), kind)
    found = vertices(glb, tmp_path)
    np.testing.assert_allclose(found[:, 0, 0] - CUBE[0, 0], expected, atol=1e-6)


def test_matrices_colours_and_sparse_accessors(tmp_path):
    glb = cube()
    shift = np.eye(4)
    shift[3, :3] = (1, 2, 3)
    glb.document["nodes"][0]["matrix"] = shift.reshape(-1).tolist()
    glb.attributes["COLOR_0"] = glb.array(np.tile([255, 128, 0, 255], (8, 1)), "uint8", normalized=True)
    glb.document["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [0.5, 1, 1, 1]}}]
    glb.document["meshes"][0]["primitives"][0]["material"] = 0
    glb.array([7], "uint16")
    glb.array([[5, 5, 5]])
    views = len(glb.document["bufferViews"])
    glb.document["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": views - 2, "componentType": 5123},
        "values": {"bufferView": views - 1},
    }
    found = read_glb(glb.write(tmp_path / "a.glb"), 24.0)
    np.testing.assert_allclose(found.vertices[0, :7], CUBE[:7] + np.array([1, 2, 3]), atol=1e-6)
    np.testing.assert_allclose(found.vertices[0, 7], [6, 7, 8], atol=1e-6)
    np.testing.assert_allclose(found.colors, np.tile([0.5, 128 / 255, 0], (8, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("surface", "colour"),
    [
        ({}, (0.7, 0.7, 0.7)),
        ({"baseColorFactor": [1, 1, 1, 1]}, (1, 1, 1)),
        ({"baseColorTexture": {"index": 0}}, (0.7, 0.7, 0.7)),
        ({"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 0.5, 0, 1]}, (0.7, 0.35, 0)),
    ],
)
def test_what_has_its_colour_from_a_texture_is_grey(tmp_path, surface, colour):
    glb = cube()
    glb.document["materials"] = [{"pbrMetallicRoughness": surface}]
    glb.document["meshes"][0]["primitives"][0]["material"] = 0
    found = read_glb(glb.write(tmp_path / "a.glb"), 24.0)
    np.testing.assert_allclose(found.colors, np.tile(colour, (8, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(scenes=[{"nodes": [0]}], nodes=[{"mesh": 0, "children": [0]}]), "several parents"),
        (lambda d: d["accessors"][0].update(count=9), "beyond"),
        (lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]), "draco"),
        (lambda d: d["bufferViews"][0].update(buffer=1), "other files"),
        (lambda d: d["meshes"][0]["primitives"][0].update(mode=1), "no triangles"),
        (lambda d: d.update(nodes=[]), "no triangles"),
        (lambda d: d["nodes"][0].update(mesh=3), "IndexError"),
        (lambda d: d["accessors"][0].update(count=-1), "entries"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, change, words):
    glb = cube()
    change(glb.document)
    with pytest.raises(InvalidMesh, match=words):
        vertices(glb, tmp_path)


def test_animations_that_are_too_long(tmp_path):
    glb = cube()
    glb.animate(0, "translation", [0, 1e6], [[0, 0, 0], [1, 0, 0]])
    with pytest.raises(InvalidMesh, match="frames, at most"):
        vertices(glb, tmp_path)


def read_or_refused(path) -> None:
    try:
        found = read_glb(path, 2.0)
    except InvalidMesh:
        return
    assert len(found.faces) == 0 or found.faces.max() < found.vertices.shape[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    glb = cube()
    glb.animate(0, "rotation", [0, 1], [xyzw([0, 0, 0]), xyzw([1.2, 0, 0])])
    return glb.write(tmp_path_factory.mktemp("meshes") / "a.glb")


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # any number may have become NaN
def test_damaged_files_are_read_or_refused(whole, data):
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    damaged = whole.with_name("damaged.glb")
    damaged.write_bytes(content)
    read_or_refused(damaged)
