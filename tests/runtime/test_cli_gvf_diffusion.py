"""The command line on bundles of GVFDiffusion (see gvf_bundle.py)."""

from __future__ import annotations

import numpy as np
import pytest
from gvf_bundle import asset, pictures
from mesh_files import cube
from PIL import Image

import edge4d
from edge4d.runtime import cli
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.ply import write_ply
from edge4d.runtime.profile_files import read_profile
from edge4d.runtime.timings import StageTime


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """asset.ply, cube.glb, and a video of five frames as a folder and as its masks."""
    folder = tmp_path_factory.mktemp("gvf")
    write_ply(folder / "asset.ply", asset())
    glb = cube()
    glb.animate(0, "translation", [0, 0.5], [[0, 0, 0], [0.2, 0, 0]])
    glb.write(folder / "cube.glb")
    for name in ("video", "masks"):
        (folder / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (97, 97, 3))
    for number, frame in enumerate(pictures(asset(), 40, 5, size=97)):
        behind = np.where(frame[..., 3:] > 127, frame[..., :3], noise).astype(np.uint8)
        Image.fromarray(behind).save(folder / "video" / f"{number}.jpg")
        Image.fromarray(frame[..., 3]).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture
def generate(run, random_gvf_bundle):
    """`edge4d generate` with the random bundle, or another."""

    def generate(*arguments: object, bundle: object = random_gvf_bundle) -> tuple[int, str, str]:
        return run("generate", *arguments, "--bundle", bundle)

    return generate


def test_from_video_to_video(generate, files, tmp_path):
    code, out, err = generate(
        *(files / "video", "--canonical", files / "asset.ply", "--masks", files / "masks", "--source-fps", 4),
        *("--save-scene", tmp_path / "scene.safetensors", "--seconds", 1, "--steps", 3, "--anchors", 100),
        *("--size", "66x64", "--seed", 2, "-o", tmp_path / "frames"),
    )
    assert code == 0, err
    assert out.split() == [str(tmp_path / "frames"), str(tmp_path / "scene.safetensors")]
    scene = edge4d.Scene4D.load(tmp_path / "scene.safetensors")
    assert (scene.t1, scene.fps, scene.camera.width) == (0.75, 4, 66)
    assert len(list((tmp_path / "frames").iterdir())) == 4  # as long as the scene
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames" / "0000.png"))[0, 0], 255)
    for word in ("read", "align", "dit_cond", "sample", "interpolate", "decode", "render", "azimuth"):
        assert word in err


def test_from_mesh_to_video(generate, files, tmp_path):
    code, _, err = generate(
        "--mesh", files / "cube.glb", "--camera", "orbit", "--size", "64x64", "-o", tmp_path / "out.mp4"
    )
    assert code == 0, err
    assert (tmp_path / "out.mp4").stat().st_size > 500
    assert "encode" in err


def test_from_video_alone_to_video(generate, files, tiny_gvf_bundle, tmp_path):
    code, out, err = generate(
        *(files / "video", "--masks", files / "masks", "--save-scene", tmp_path / "scene.safetensors"),
        *("--steps", 2, "--size", "64x64", "-o", tmp_path / "frames"),
        bundle=tiny_gvf_bundle,
    )
    assert code == 0, err
    assert out.split() == [str(tmp_path / "frames"), str(tmp_path / "scene.safetensors")]
    assert len(edge4d.Scene4D.load(tmp_path / "scene.safetensors")) > 256
    assert len(list((tmp_path / "frames").iterdir())) == 5
    for word in ("dino", "ss_flow", "ss_dec", "slat_flow", "gs_dec", "dit_cond", "azimuth"):
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("VIDEO",), "--canonical FILE.ply"),
        (("VIDEO", "--canonical", "PLY"), "--masks DIR"),
        (("VIDEO", "--canonical", "PLY", "--depth", "depth.npy"), "--depth means nothing"),
        (("VIDEO", "--canonical", "PLY", "--temperature", "0.5"), "--temperature means nothing"),
        (("--mesh", "PLY"), "no triangles"),
        (("--mesh", "GLB", "--azimuth", "3"), "--azimuth means nothing"),
        (("absent.mp4", "--canonical", "PLY"), "no video at absent.mp4"),
        (("--mesh", "VIDEO/0.jpg"), "a .glb with an animation"),
        (("VIDEO", "--canonical", "PLY", "--camera", "orbits"), "no trajectory or file of poses called 'orbits'"),
        (("VIDEO", "--canonical", "PLY", "--frames", "0"), "it is 0; it must be a whole number from 1"),
        (("VIDEO", "--canonical", "PLY", "--fps", "0"), "it is 0.0; it must lie between 0.001 and 1000"),
        (("VIDEO", "--canonical", "PLY", "--azimuth", "nan"), "nan degrees"),
        (("VIDEO", "--canonical", "PLY", "--anchors", "0"), "0; changes are interpolated from 8"),
        (("VIDEO", "--canonical", "PLY", "--steps", "0"), "0, from 1 to 1000"),
        (("VIDEO", "--canonical", "PLY", "--seconds", "-1"), "-1 seconds"),
        (("VIDEO", "--canonical", "PLY", "--source-fps", "0"), "0 frames per second"),
        (("VIDEO", "--canonical", "PLY", "--seed", "-1"), "-1, a whole number"),
    ],
)
def test_errors_say_what_to_do(generate, files, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    names = {
        "VIDEO": files / "video",
        "VIDEO/0.jpg": files / "video" / "0.jpg",
        "PLY": files / "asset.ply",
        "GLB": files / "cube.glb",
    }
    code, out, err = generate(*(names.get(word, word) for word in arguments), "-o", "out")
    assert (code, out) == (1, "")
    assert words in err
    assert "Hint: " in err
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir())


def test_a_scene_of_one_frame_is_said_to_stand_still(generate, files, tmp_path):
    picture, mask = files / "video" / "0.jpg", files / "masks" / "0.png"
    options = ("--canonical", files / "asset.ply", "--masks", mask, "--steps", 1, "--size", "32x32")
    code, _, err = generate(picture, *options, "-o", tmp_path / "frames")
    assert code == 0, err
    assert "The scene stands still" in err


def test_bundles_of_videos_are_not_calibrated(run, random_gvf_bundle, files, tmp_path):
    code, _, err = run("calibrate", random_gvf_bundle, "--data", files / "video", "-o", tmp_path / "int8.e4d")
    assert code == 1
    assert "Its system is gvf_diffusion" in err
    assert not any(tmp_path.iterdir())


def test_of_many_tensors_some_are_told():
    table = cli._times_table([StageTime("render", 1.0, {f"x{i}": "1" for i in range(12)})], 1)
    (cell,) = list(table.columns[2].cells)[:1]
    assert cell.endswith("x8 1, 3 more")


def test_a_video_or_a_mesh(generate, files):
    assert generate("-o", "out")[0] == 2
    assert generate(files / "video", "--mesh", files / "cube.glb", "-o", "out")[0] == 2


def test_options_of_videos_mean_nothing_to_photographs(capsys, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    for option in ("--canonical", "--mesh"):
        source = [] if option == "--mesh" else [str(tmp_path / "photo.png")]
        with pytest.raises(SystemExit) as stop:
            cli.main(["generate", *source, option, "a.ply", "-o", str(tmp_path / "out")])
        assert stop.value.code == 1
        assert f"{option} means nothing to the bundle 'street'" in capsys.readouterr().err


def test_a_profile_has_every_stage_with_its_layers(capsys, tiny_gvf_bundle, tmp_path):
    options = ["--backend", "onnxruntime", "--precision", "fp32", "--runs", "1", "--frames", "2", "--size", "48x40"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", str(tiny_gvf_bundle), *options, "-o", str(tmp_path / "profile")])
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    measured = read_profile(tmp_path / "profile")
    assert [stage.name for stage in measured.stages] == list(Bundle.load(tiny_gvf_bundle).stages)
    assert all(stage.layers and stage.runs_ms for stage in measured.stages)
    assert (measured.size, len(measured.render_ms)) == ((48, 40), 2)
    operators = {layer.kind for stage in measured.stages for layer in stage.layers}
    assert {"SubmanifoldConvolution", "WindowAttention", "GatherMean"} & operators
    report = (tmp_path / "profile" / "report.html").read_text()
    for stage in measured.stages:
        assert f"{stage.name} in fp32" in report


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "0x40"), "it is 0"),
        (("--precision", "int8"), "no int8"),
    ],
)
def test_profiles_that_cannot_be(capsys, random_gvf_bundle, tmp_path, arguments, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", str(random_gvf_bundle), *arguments, "-o", str(tmp_path / "profile")])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Note: " in error
