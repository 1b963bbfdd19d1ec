"""The page on a calibration, and the command that writes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from edge4d.calib.report import html, truth_of
from edge4d.calib.speed import StageSpeed

TIMES = "\N{MULTIPLICATION SIGN}"
VOID = {"meta", "wbr", "br", "img", "polygon", "line"}


class Page(HTMLParser):
    """Fails where tags do not balance; keeps what a reader sees, and what is loaded from where."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.seen = ""
        self.feed(source)
        self.close()
        assert not self.open
        self.seen = " ".join(self.seen.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.seen += f" {data}"


SPEEDS = [
    StageSpeed("onnxruntime", "core", "fp32", 20.0, 0),
    StageSpeed("onnxruntime", "core", "int8", 10.0, 0),
    StageSpeed("tensorrt", "core", "int8", 0.5, 2_500_000),
]


def test_the_page_says_what_came_of_it(int8):
    page = Page(html(int8, SPEEDS, {}))
    chosen = sum(layer.int8 for layer in int8.results.layers)
    assert f"{chosen} of 10 layers compute in int8" in page.seen
    for words in ("Against the frames of fp32", "no true frames", "Worst:", "Best:", f"2.00{TIMES}"):
        assert words in page.seen
    for layer in int8.results.layers:
        assert layer.name in page.seen.replace(" ", "") or layer.name in page.seen
    assert "tensorrt core int8" in page.seen
    assert "pictures 3, samples 3" in page.seen


def test_the_page_loads_nothing(int8):
    """It holds its pictures: three frames of each of three kinds."""
    page = Page(html(int8, [], {}))
    pictures = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert len(pictures) == 9
    assert all(source.startswith("#") for source in page.sources if source not in pictures)
    assert "Nothing was timed." in page.seen


def test_text_of_others_is_escaped(int8):
    results = int8.results._replace(data={"pictures <b>": 3}, warnings=("<script>alert(1)</script>",))
    source = html(int8.__class__(int8.bundle, results, int8.ranges, int8.reference, 0), SPEEDS, {})
    assert "<script" not in source
    assert "pictures <b> 3" in Page(source).seen


def test_figures_on_true_frames(int8):
    truth = {
        precision: {"psnr": 20.5, "psnr_static": 19.0, "psnr_copy": 15.0, "ssim": 0.8, "count": 2, "frames": 4}
        for precision in ("fp32", "int8")
    }
    seen = Page(html(int8, SPEEDS, truth)).seen
    assert "Against the true frames" in seen
    assert "int8 20.5 19.0 15.0 0.8000" in seen
    assert "2 photographs of the world, 3 later frames each" in seen


def test_photographs_have_no_truth(int8):
    assert truth_of(int8, None) == {}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """The same with a cache of its own."""
    monkeypatch.setenv("EDGE4D_CACHE", str(tmp_path / "cache"))
    return run


@pytest.fixture
def pictures(tmp_path, photos):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for photo in photos().photos:
        Image.fromarray(photo.image).save(folder / photo.name)
    return folder


def test_from_pictures_to_figures(run, float_bundle, pictures, tmp_path):
    """Calibrated, described, run, evaluated and profiled in int8."""
    output, report = tmp_path / "int8.e4d", tmp_path / "int8.calibration.html"
    code, out, err = run("calibrate", float_bundle, "--data", pictures, "--keep-above", "38dB", "-o", output)
    assert (code, out) == (0, f"{output}\n{report}\n"), err
    assert "Warning: Ranges come from 3 photographs" in err
    assert "perceive: 2 of 2 layers" in " ".join(err.split())
    Page(report.read_text())
    code, out, _ = run("info", output)
    assert code == 0
    assert re.search(r"precisions  fp32, fp16, int8", out)
    assert re.search(r"int8 +percentile on pictures 3, samples 3; video \d\d\.\d dB from fp32", out)
    photo = sorted(pictures.iterdir())[0]
    arguments = ("--bundle", output, "--precision", "int8", "--frames", 2, "-o", tmp_path / "out.mp4")
    assert run("generate", photo, *arguments)[0] == 0
    arguments = ("--backend", "onnxruntime", "--precision", "int8", "--runs", 1, "--frames", 0, "-o", tmp_path / "p")
    code, _, err = run("profile", output, *arguments)
    assert code == 0, err
    assert json.loads((tmp_path / "p" / "profile.json").read_text())["stages"][0]["precision"] == "int8"


def test_a_precision_that_is_not_there_is_no_other_one(run, float_bundle, pictures, tmp_path):
    photo = sorted(pictures.iterdir())[0]
    code, _, err = run(
        *("generate", photo, "--bundle", float_bundle, "--precision", "int8", "-o", tmp_path / "out.mp4")
    )
    assert code == 1
    assert "no int8 graph" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--keep-above", "much"], 2, "not a number of decibels"),
        (["--keep-above", "99"], 1, "cannot be kept to that"),
        (["--method", "best"], 1, "no calibration method"),
        (["--samples", "0"], 2, "'--samples'"),
        (["--data", "nowhere"], 1, "nothing to calibrate on"),
        (["--data", "world:atlantis"], 1, "atlantis"),
    ],
)
def test_options_that_cannot_be_used(run, float_bundle, pictures, tmp_path, options, code, words):
    found, _, err = run("calibrate", float_bundle, "--data", pictures, "-o", tmp_path / "int8.e4d", *options)
    assert found == code
    assert words in err
    assert not (tmp_path / "int8.e4d").exists()


def test_a_picture_is_not_a_range(run, float_bundle, tmp_path):
    (tmp_path / "one").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one" / "a.png")
    code, _, err = run(
        *("calibrate", float_bundle, "--data", tmp_path / "one", "--keep-above", "30", "-o", tmp_path / "int8.e4d")
    )
    assert code == 0, err
    assert "Ranges come from 1 photograph" in err
