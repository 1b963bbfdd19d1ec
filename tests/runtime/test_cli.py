"""The command line, run in this process, and once as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge4d
from edge4d.runtime import bundle_engines

COMMANDS = ("generate", "render", "info", "evaluate", "world", "export", "train", "build", "profile", "doctor")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(20, 200, (40, 80, 3)).astype(np.uint8)
    pixels[10:20, 20:40] = (250, 60, 60)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_from_photograph_to_video(run, photo, tiny_bundle, tmp_path):
    code, out, err = run(
        *("generate", photo, "--bundle", tiny_bundle, "--camera", "orbit", "--frames", 3, "-o", tmp_path / "out.mp4"),
        *("--save-scene", tmp_path / "scene.safetensors", "--depth-video", tmp_path / "depth.mp4", "--seed", 3),
    )
    assert code == 0, err
    for name in ("out.mp4", "depth.mp4", "scene.safetensors"):
        assert (tmp_path / name).stat().st_size > 500
        assert str(tmp_path / name) in out
    for word in ("read", "perceive", "core", "scene", "render", "write", "total", "frames/s"):
        assert word in err
    assert "assumed, 60° across" in err


def test_what_the_user_knows_reaches_the_network(run, photo, tiny_bundle, tmp_path):
    np.save(tmp_path / "depth.npy", np.full((40, 80), 3.0, np.float32))
    Image.fromarray(np.zeros((40, 80), np.uint8)).save(tmp_path / "ids.png")
    code, _, err = run(
        *("generate", photo, "--bundle", tiny_bundle, "--depth", tmp_path / "depth.npy"),
        *("--instances", tmp_path / "ids.png", "--intrinsics", "80,80,40,20", "--size", "96x64", "--precision", "fp16"),
        *("--background", "0.5,0.5,0.5", "--frames", 2, "-o", tmp_path / "frames"),
        *("--save-scene", tmp_path / "scene.safetensors"),
    )
    assert code == 0, err
    scene = edge4d.Scene4D.load(tmp_path / "scene.safetensors")
    np.testing.assert_allclose(scene.means[:, 2], 3.0, rtol=1e-3)  # half precision
    assert (scene.groups == 0).all()
    assert scene.background == (0.5, 0.5, 0.5)
    assert (scene.camera.width, scene.camera.height) == (96, 64)
    # 40 of 80x40: the middle 60x40 remains and grows by 1.6.
    assert scene.camera.intrinsics == pytest.approx((128, 128, 48, 32))
    assert sorted(os.listdir(tmp_path / "frames")) == ["0000.png", "0001.png"]


def test_scenes_and_ply_are_rendered(run, photo, tiny_bundle, tmp_path):
    from edge4d.runtime.ply import write_ply

    scene = edge4d.load(tiny_bundle).generate(photo)
    scene.save(tmp_path / "scene.safetensors")
    write_ply(tmp_path / "scene.ply", scene.evaluate(0.0))
    (tmp_path / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0.1 0 1 0 0 0 0 1 0\n")
    for name in ("scene.safetensors", "scene.ply"):
        code, out, err = run(
            *("render", tmp_path / name, "--camera", tmp_path / "poses.txt", "--camera-format", "kitti"),
            *("--size", "48x32", "--fps", 5, "--backend", "onnxruntime", "-o", tmp_path / "out.mp4"),
        )
        assert code == 0, err
        assert out.strip() == str(tmp_path / "out.mp4")
        code, out, err = run("info", tmp_path / name)
        assert code == 0, err
        assert "Gaussians" in out


def test_scenes_for_other_programs(run, photo, tiny_bundle, tmp_path):
    command = ("generate", photo, "--bundle", tiny_bundle, "--frames", 2, "-o", tmp_path / "out.mp4", "--save-scene")
    for name in ("scene.ply", "sequence"):
        code, _, err = run(*command, tmp_path / name)
        assert code == 0, err
    assert (tmp_path / "scene.ply").read_bytes()[:4] == b"ply\n"
    assert len(list((tmp_path / "sequence").glob("*.ply"))) == 2
    assert run(*command, tmp_path / "scene.obj")[0] == 1


def test_info_on_a_bundle(run, tiny_bundle):
    code, out, _ = run("info", tiny_bundle)
    assert code == 0
    for word in ("pixel_to_4d", "perceive", "core", "fp16", "Apache-2.0", "provenance"):
        assert word in out


def test_evaluate_on_a_folder(run, tiny_bundle, tiny_world, tmp_path):
    code, out, err = run("evaluate", tiny_bundle, "--data", tiny_world, "--frames", 2, "--json", "-")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["psnr"] > figures["psnr_copy"]
    assert figures["frames"] == 2
    code, out, _ = run(
        "evaluate", tiny_bundle, "--data", tiny_world, "--frames", 2, "--json", tmp_path / "figures.json"
    )
    assert code == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_doctor(run):
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("edge4d", "numpy", "native kernels", "H.264", "backend onnxruntime", "backend tensorrt"):
        assert word in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_whose_options_exist(run, command):
    code, text, _ = run(command, "--help")
    assert code == 0
    example = " ".join(text.partition("Example: ")[2].split())
    assert example.startswith(f"edge4d {command}")
    for option in (word for word in example.split() if word.startswith("-") and word != "-"):
        assert option in text.partition("Example: ")[0]


def test_help_names_every_command(run):
    code, text, _ = run("--help")
    assert code == 0
    assert all(command in text for command in COMMANDS)
    assert run("--version") == (0, f"{edge4d.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "absent.png", "-o", "out.mp4"),
        ("generate", "PHOTO", "-o", "out.mp4", "--backend", "tensorrt"),
        ("generate", "PHOTO", "-o", "out.mp4", "--backend", "abacus"),
        ("generate", "PHOTO", "-o", "out.mp4", "--precision", "int8"),
        ("generate", "PHOTO", "-o", "out.mp4", "--bundle", "./absent"),
        ("generate", "PHOTO", "-o", "out.mp4", "--size", "100x60"),
        ("generate", "PHOTO", "-o", "out.mp4", "--camera", "teleport"),
        ("generate", "PHOTO", "-o", "out.mp4", "--frames", "0"),
        ("generate", "PHOTO", "-o", "out.mp4", "--background", "7,7,7"),
        ("generate", "PHOTO", "-o", "out.gif"),
        ("render", "absent.safetensors", "-o", "out.mp4"),
        ("render", "absent.ply", "-o", "out.mp4"),
        ("info", "absent.e4d"),
        ("evaluate", "TINY", "--data", "absent"),
        ("evaluate", "TINY"),
        ("export", "teleport", "-o", "x.e4d"),
        ("export", "gvf-diffusion", "--config", "huge", "-o", "x.e4d"),
        ("export", "gvf-diffusion", "--config", "tiny", "--checkpoint", ".", "-o", "x.e4d"),
        ("export", "gvf-diffusion", "--checkpoint", "absent", "-o", "x.e4d"),
        ("train", "teleport", "-o", "x"),
    ],
)
def test_errors_are_three_lines_and_no_traceback(run, photo, tiny_bundle, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    filled = [{"PHOTO": photo, "TINY": tiny_bundle}.get(word, word) for word in arguments]
    if arguments[0] == "generate" and "--bundle" not in arguments:
        filled += ["--bundle", tiny_bundle]
    code, out, err = run(*filled)
    assert code == 1
    assert out == ""
    assert "Traceback" not in err
    message = err.strip().splitlines()
    assert 2 <= len([line for line in message if not line.startswith(" ")]) <= 3
    assert os.listdir(tmp_path) == ["photo.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("paint",),
        ("generate",),
        ("generate", "photo.png"),
        ("generate", "photo.png", "-o", "out.mp4", "--frames", "many"),
        ("generate", "photo.png", "-o", "out.mp4", "--size", "big", "--bundle", "TINY"),
        ("generate", "photo.png", "-o", "out.mp4", "--intrinsics", "1,2,3", "--bundle", "TINY"),
        ("evaluate", "TINY", "--world", "street", "--data", "x"),
        ("evaluate", "TINY", "--data", "x", "--size", "64x32"),
    ],
)
def test_wrong_usage_ends_with_two(run, tiny_bundle, arguments):
    code, _, err = run(*(tiny_bundle if word == "TINY" else word for word in arguments))
    assert code == 2
    assert "Traceback" not in err


def test_as_a_program(photo, tiny_bundle, tmp_path):
    """Exit codes and streams are those of a real process, without a terminal."""
    command = [sys.executable, "-P", "-m", "edge4d.runtime.cli"]
    output = tmp_path / "out.mp4"
    result = subprocess.run(
        [*command, "generate", photo, "--bundle", tiny_bundle, "--frames", "2", "-o", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, f"{output}\n"), result.stderr
    result = subprocess.run([*command, "info", "absent.e4d"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Hint:" in result.stderr


def test_commands_that_need_pytorch_say_so(tmp_path):
    without_torch = "import sys; sys.modules['torch'] = None; from edge4d.runtime.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-P", "-c", without_torch, "train", "pixel-to-4d", "-o", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "edge4d[export]" in result.stderr
    assert "Traceback" not in result.stderr


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.rtx
def test_build_and_what_became_of_it(run, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path))
    arguments = ("build", "street", "--backend", "tensorrt_rtx", "--device", "sm_89", "--precision", "fp16")
    code, out, err = run(*arguments)
    assert code == 0, err
    engines = [Path(line) for line in out.splitlines()]
    assert [engine.name.split(".")[1] for engine in engines] == ["perceive", "readout", "core", "lift"]
    assert err.count("built: not built before") == 4
    engines[3].write_bytes(engines[3].read_bytes()[:-1])
    code, again, err = run(*arguments)
    assert (code, again) == (0, out)
    assert err.count("in the cache") == 3
    assert "lift" in err.splitlines()[-1]
    assert "the manifest says" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "onnxruntime"), "builds no engines"),
        (("--backend", "tensorrt_rtx", "--device", "ada"), "is not a kind of GPU"),
    ],
)
def test_builds_that_cannot_be(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path))
    monkeypatch.setattr(bundle_engines, "library_version", lambda library: "1.7.1")
    code, out, err = run("build", "street", *arguments)
    assert (code, out) == (1, "")
    assert words in err
    assert not any(tmp_path.iterdir())


# --- profile ----------------------------------------------------------------------------------------------------------


def test_profile_and_what_became_faster(run, tiny_bundle, tmp_path, monkeypatch):
    from edge4d.runtime.profile_files import read_profile

    monkeypatch.chdir(tmp_path)
    arguments = ("profile", tiny_bundle, "--backend", "onnxruntime", "--runs", 2, "--frames", 2)
    code, out, err = run(*arguments)
    assert (code, out) == (0, f"{Path('profile-tiny')}\n{Path('profile-tiny', 'report.html')}\n"), err
    measured = read_profile(tmp_path / "profile-tiny")
    assert [len(stage.runs_ms) for stage in measured.stages] == [2] * 4
    assert len(measured.render_ms) == 2
    assert "<html" in (tmp_path / "profile-tiny" / "report.html").read_text()
    for word in ("perceive", "core", "fp32", "fp16", "P50", "P95", "P99", "weights MB", " % ", "frames/s"):
        assert word in err
    assert "ratio" not in err
    again = ("--precision", "fp16", "--size", "96x64", "-o", tmp_path / "new", "--against", "profile-tiny")
    code, out, err = run(*arguments, *again)
    assert (code, out) == (0, f"{tmp_path / 'new'}\n{tmp_path / 'new' / 'report.html'}\n"), err
    compared = read_profile(tmp_path / "new")
    assert [(stage.name, stage.precision) for stage in compared.stages] == [("perceive", "fp16"), ("core", "fp16")]
    assert compared.size == (96, 64)
    assert err.count("ratio") == 2  # of the stages, and of the frames
    code, out, err = run("profile", tiny_bundle, "--frames", 0, "--runs", 1, "-o", "bare", "--against", "new")
    assert code == 0, err
    assert "frames/s" not in err
    assert [line.split()[6] for line in err.splitlines() if " fp32 " in line] == ["-", "-"]  # fp32 was not in "new"


@pytest.mark.parametrize(
    "arguments",
    [("--against", "absent"), ("--precision", "int8"), ("--size", "100x60"), ("--backend", "abacus")],
)
def test_profiles_that_cannot_be(run, tiny_bundle, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("profile", tiny_bundle, *arguments)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


# --- the engine cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def engine_cache(tmp_path, monkeypatch):
    """A cache of two engines, found through EDGE4D_CACHE."""
    from edge4d.runtime.engine_cache import EngineCache, EngineKey

    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path / "cache"))
    cache = EngineCache()
    for name, device in (("street.perceive", "sm90 NVIDIA H200"), ("street.\x1b[2J[bold]\n", "sm89")):
        key = EngineKey(name, "a" * 64, "", "fp16", {}, {}, "tensorrt 8.6.0", device, "13", "linux-x86_64")
        cache.get(key, lambda report: bytes(2_000_000))
    return cache


def test_cache_list(run, engine_cache):
    code, out, err = run("cache", "list")
    assert (code, err) == (0, "")
    head, last, first, total = out.splitlines()
    assert head.split() == ["name", "precision", "builder", "device", "size", "last", "used", "built"]
    columns = [head.index(word) for word in ("precision", "builder", "device", "size", "last", "built")]
    cells = [first[start:end].strip() for start, end in zip([0, *columns], [*columns, None])]
    assert cells[:5] == ["street.perceive", "fp16", "tensorrt 8.6.0", "sm90 NVIDIA H200", "2.0 MB"]
    assert all(len(cell) == len("2026-01-31 12:00") for cell in cells[5:])
    assert last.startswith("street.?[2J[bold]?  fp16")  # nothing in it moves the cursor
    assert total == f"2 engines, 4.0 MB, in {engine_cache.folder}"


def test_cache_list_of_files_that_nobody_can_read(run, engine_cache):
    for number, path in enumerate(sorted(engine_cache.folder.glob("*.json"))):
        path.write_bytes(b"\xff")
        os.utime(path, (0, 1e17 * number))
    (engine_cache.folder / os.fsdecode(b"\xff\n.engine")).write_bytes(b"")
    code, out, err = run("cache", "list")
    assert (code, err) == (0, "")
    assert out.count("\n") == 5
    assert "??.engine" in [line.split()[0] for line in out.splitlines()]
    assert all(line.split()[1:4] == ["-", "-", "-"] for line in out.splitlines()[1:4])


def test_cache_clear(run, engine_cache):
    size = sum(entry.bytes for entry in engine_cache.entries()) / 1e6
    code, out, err = run("cache", "clear")
    assert (code, err) == (0, "")
    assert out == f"Removed 2 engines, {size:.1f} MB, from {engine_cache.folder}\n"
    assert os.listdir(engine_cache.folder) == []
    assert run("cache", "clear")[1] == f"Removed 0 engines, 0.0 MB, from {engine_cache.folder}\n"
    assert run("cache", "list")[1] == f"0 engines, 0.0 MB, in {engine_cache.folder}\n"


def test_cache_clear_leaves_what_is_being_built(run, engine_cache):
    from edge4d.runtime.engine_cache import EngineKey

    said = []
    key = EngineKey("new", "a" * 64, "", "fp16", {}, {}, "tensorrt 8.6.0", "sm90", "13", "linux-x86_64")
    engine_cache.get(key, lambda report: said.append(run("cache", "clear")) or b"new")
    assert said[0][1].endswith("\nLeft 1 engine that another process is building.\n")
    assert [entry.manifest().key.name for entry in engine_cache.entries()] == ["new"]


@pytest.mark.parametrize("command", ["list", "clear"])
def test_cache_help_and_errors(run, tmp_path, monkeypatch, command):
    code, text, _ = run("cache", command, "--help")
    assert code == 0
    assert f"Example: edge4d cache {command}" in text
    (tmp_path / "engines").write_text("a file")
    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path))
    code, out, err = run("cache", command)
    assert (code, out) == (1, "")
    assert [line.partition(":")[0] for line in err.splitlines()[1:]] == ["Note", "Hint"]
