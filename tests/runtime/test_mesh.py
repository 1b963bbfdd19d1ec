"""Meshes that move, from folders of PLY files, and points and Gaussians on their surfaces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_files import CUBE, QUADS, TRIANGLES, cube, write_mesh_ply

from edge4d.runtime.canonical import UP
from edge4d.runtime.errors import InvalidMesh, InvalidRequest
from edge4d.runtime.mesh import MovingMesh, read_moving_mesh, sample_surface, surface_gaussians, values_at
from edge4d.runtime.rotations import rotations_from_quats

FORMS = ("ascii", "binary_little_endian", "binary_big_endian")


@pytest.mark.parametrize("form", FORMS)
def test_polygons_become_triangles(tmp_path, form):
    colors = np.arange(24).reshape(8, 3) * 10
    write_mesh_ply(tmp_path / "a.ply", CUBE, QUADS, colors=colors, form=form)
    found = read_moving_mesh(tmp_path / "a.ply")
    np.testing.assert_array_equal(found.vertices, CUBE[None])
    assert sorted(map(tuple, found.faces.tolist())) == sorted(map(tuple, TRIANGLES.tolist()))
    np.testing.assert_allclose(found.colors, colors / 255, rtol=1e-6)


def test_a_folder_is_a_sequence(tmp_path):
    for number in (10, 2, 1):
        write_mesh_ply(tmp_path / f"frame{number}.ply", CUBE + np.float32(number), TRIANGLES)
    found = read_moving_mesh(tmp_path)
    np.testing.assert_array_equal(found.vertices[:, 0, 0] - CUBE[0, 0], [1, 2, 10])
    np.testing.assert_array_equal(found.colors, np.full((8, 3), np.float32(0.7)))


@pytest.mark.parametrize("up", UP)
def test_up_is_z(tmp_path, up):
    write_mesh_ply(tmp_path / "a.ply", CUBE, TRIANGLES)
    np.testing.assert_allclose(read_moving_mesh(tmp_path / "a.ply", up=up).vertices[0], CUBE @ UP[up].T, atol=1e-7)
    with pytest.raises(InvalidRequest):
        read_moving_mesh(tmp_path / "a.ply", up="x")


def test_glb_is_y_up(tmp_path):
    glb = cube()
    glb.animate(0, "translation", [0, 1], [[0, 0, 0], [0, 1, 0]])
    found = read_moving_mesh(glb.write(tmp_path / "a.GLB"), fps=4.0)
    np.testing.assert_allclose(found.vertices[:, 0, 2] - found.vertices[0, 0, 2], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize("change", ["vertices", "triangles", "order"])
def test_topologies_that_change(tmp_path, change):
    write_mesh_ply(tmp_path / "0.ply", CUBE, TRIANGLES)
    vertices = np.concatenate([CUBE, CUBE[:1]]) if change == "vertices" else CUBE
    faces = {"triangles": TRIANGLES[:-1], "order": TRIANGLES[::-1]}.get(change, TRIANGLES)
    write_mesh_ply(tmp_path / "1.ply", vertices, faces)
    with pytest.raises(InvalidMesh, match=r"1\.ply is another one"):
        read_moving_mesh(tmp_path)


def test_what_is_no_mesh(tmp_path):
    from gvf_bundle import asset

    from edge4d.runtime.ply import write_ply

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ply").write_text("ply\nformat ascii 1.0\nelement vertex 1\n")
    write_ply(tmp_path / "gaussians.ply", asset())
    write_mesh_ply(tmp_path / "wrong.ply", CUBE, TRIANGLES + 1)
    write_mesh_ply(tmp_path / "nan.ply", CUBE * np.float32("nan"), TRIANGLES)
    for name, words in {
        "empty": "no meshes",
        "absent.ply": "cannot be read",
        "text.ply": "readable",
        "gaussians.ply": "no triangles",
        "wrong.ply": "not there",
        "nan.ply": "finite",
    }.items():
        with pytest.raises(InvalidMesh, match=words):
            read_moving_mesh(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FORMS))
def test_damaged_files_are_read_or_refused(tmp_path_factory, data, form):
    path = tmp_path_factory.getbasetemp() / "damaged.ply"
    write_mesh_ply(path, CUBE, QUADS, form=form)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    path.write_bytes(content)
    try:
        found = read_moving_mesh(path)
    except InvalidMesh:
        return
    assert found.faces.max() < found.vertices.shape[1]


def test_points_are_spread_evenly_and_stay_on_their_triangles():
    wide = CUBE * np.array([4, 1, 1], np.float32)
    points = sample_surface(wide, TRIANGLES, 4000)
    found = values_at(points, TRIANGLES, np.stack([wide, wide + np.float32(0.5)]))
    assert found.shape == (2, 4000, 3)
    np.testing.assert_allclose(found[1] - found[0], 0.5, atol=1e-6)
    sides = [np.isclose(np.abs(found[0][:, axis]), np.abs(wide[0, axis]), atol=1e-6).sum() for axis in range(3)]
    # Of areas 2 of 18, 8 of 18 and 8 of 18; one point in each equal part leaves a handful at the edges.
    np.testing.assert_allclose(sides, np.array([2, 8, 8]) / 18 * 4000, atol=12)
    np.testing.assert_array_equal(points.triangles, sample_surface(wide, TRIANGLES, 4000).triangles)


def test_gaussians_lie_flat_and_touch():
    mesh = MovingMesh(CUBE[None], TRIANGLES.astype(np.int32), np.tile(np.array([0.2, 0.4, 0.6], np.float32), (8, 1)))
    found = surface_gaussians(mesh, 2000)
    normals = rotations_from_quats(found.quats)[:, :, 2]
    outward = np.where(np.isclose(np.abs(found.means), 0.3, atol=1e-6), np.sign(found.means), 0)
    faces = np.abs(outward).sum(axis=1) == 1  # not on an edge
    np.testing.assert_allclose(normals[faces], outward[faces], atol=1e-5)
    spacing = np.sqrt(6 * 0.36 / 2000)
    np.testing.assert_allclose(
        found.scales, np.tile([0.5 * spacing, 0.5 * spacing, 0.1 * spacing], (2000, 1)), rtol=1e-5
    )
    np.testing.assert_allclose(0.28209479 * found.colors[:, 0] + 0.5, np.tile([0.2, 0.4, 0.6], (2000, 1)), rtol=1e-5)


def test_meshes_without_a_surface():
    with pytest.raises(InvalidMesh, match="no surface"):
        sample_surface(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32), 10)
