"""From a bundle and photographs to the same bundle with an int8 variant."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import edge4d
from edge4d.calib.calibrate import calibrate
from edge4d.calib.mixes import read_stages
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.calibration_file import int8_summary, summary_lines
from edge4d.runtime.errors import InvalidBundle, InvalidCalibration, InvalidRequest, PrecisionNotInBundle


def test_the_bundle_runs_and_keeps_the_picture(int8, photos):
    bundle = int8.bundle
    assert bundle.precisions == ("fp32", "fp16", "int8")
    assert int8.results.cpu.mean >= 40
    assert int8.results.engine.mean >= 40
    photo = photos().photos[0]
    with edge4d.load(bundle.folder, precision="int8") as pipeline:
        scene = pipeline.generate(photo.image, intrinsics=photo.intrinsics)
    assert np.isfinite(scene.means).all()
    assert int8.reference.score(bundle) == int8.results.cpu  # what was scored is what was written


def test_the_graphs_share_the_weights(int8):
    """But for those that are too small to be shared; scales and nodes alone make the files larger."""
    size = {path: entry.bytes for path, entry in int8.bundle.files.items()}
    assert {path for path in size if ".int8" in path} == {
        f"{stage}.int8{kind}.onnx" for stage in ("perceive", "core") for kind in ("", ".engine")
    }
    assert size["core.int8.onnx"] < size["core.fp32.onnx"] + 0.5 * size["core.weights"]
    onnx = pytest.importorskip("onnx")
    for path in ("core.int8.onnx", "core.int8.engine.onnx"):
        model = onnx.load(int8.bundle.folder / path, load_external_data=False)
        assert (model.ir_version, model.opset_import[0].version) == (8, 17)
        shared = [tensor for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]
        assert {entry.value for tensor in shared for entry in tensor.external_data if entry.key == "location"} == {
            "core.weights"
        }
        biases = sum(tensor.data_type == onnx.TensorProto.INT32 for tensor in model.graph.initializer)
        assert biases == (0 if "engine" in path else 6)  # TensorRT takes none


def test_the_same_data_gives_the_same_bytes(int8, float_bundle, tmp_path, photos):
    again = calibrate(Bundle.load(float_bundle), photos(), tmp_path / "again.e4d", cache=tmp_path / "other cache")
    assert again.reused == 0
    files = sorted(path.name for path in int8.bundle.folder.iterdir())
    assert sorted(path.name for path in again.bundle.folder.iterdir()) == files
    for name in files:
        assert (again.bundle.folder / name).read_bytes() == (int8.bundle.folder / name).read_bytes(), name


def test_other_photographs_give_other_ranges(int8, float_bundle, tmp_path, photos, cache):
    other = calibrate(Bundle.load(float_bundle), photos(seed=1), tmp_path / "other.e4d", cache=cache)
    assert other.reused == 0
    assert other.ranges["core"] != int8.ranges["core"]


def test_an_int8_variant_is_replaced(int8, tmp_path, photos, cache):
    """In place, with the figures of the first time: the bundle's other variants are what they depend on."""
    before = {path.name: path.read_bytes() for path in int8.bundle.folder.iterdir()}
    folder = shutil.copytree(int8.bundle.folder, tmp_path / "int8.e4d")
    again = calibrate(Bundle.load(folder), photos(), folder, cache=cache)
    assert again.reused > 10
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(float_bundle, tmp_path, photos, cache, int8):
    """Stopped after the ranges and some layers; the rest is what a run that was not stopped gives."""
    other = tmp_path / "cache of this test"
    output = tmp_path / "late.e4d"

    def stop(done: int, total: int) -> None:
        if done == len(photos().photos) + 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        calibrate(Bundle.load(float_bundle), photos(), output, cache=other, report=stop)
    assert not output.exists()
    assert not list(tmp_path.glob(".late*"))
    late = calibrate(Bundle.load(float_bundle), photos(), output, cache=other)
    assert late.reused == 1 + 5
    assert (output / "bundle.json").read_bytes() == (int8.bundle.folder / "bundle.json").read_bytes()


def test_progress_ends_where_it_said(float_bundle, tmp_path, photos, cache):
    said: list[tuple[int, int]] = []
    calibrate(
        Bundle.load(float_bundle),
        photos(),
        tmp_path / "int8.e4d",
        cache=cache,
        report=lambda done, total: said.append((done, total)),
    )
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1][0] == said[-1][1]


def test_layers_go_back_until_the_picture_is_kept(float_bundle, tmp_path, photos, cache, int8):
    strict = calibrate(Bundle.load(float_bundle), photos(), tmp_path / "strict.e4d", cache=cache, keep_above=46.0)
    assert strict.reused > 0  # each layer alone is known already
    assert strict.results.cpu.mean >= 46
    assert strict.results.engine.mean >= 46
    kept = [sum(layer.int8 for layer in calibration.results.layers) for calibration in (strict, int8)]
    assert 0 < kept[0] < kept[1]
    assert [layer.name for layer in strict.results.layers] == [layer.name for layer in int8.results.layers]


def test_more_than_fp16_keeps(float_bundle, tmp_path, photos, cache):
    with pytest.raises(InvalidCalibration, match=r"above 80 dB[\s\S]*Already fp16[\s\S]*lower --keep-above"):
        calibrate(Bundle.load(float_bundle), photos(), tmp_path / "int8.e4d", cache=cache, keep_above=80.0)


def test_smoothing_moves_outliers_into_the_weights(float_bundle, tmp_path, photos, cache, int8):
    smooth = calibrate(Bundle.load(float_bundle), photos(), tmp_path / "smooth.e4d", cache=cache, smooth=0.5)
    onnx = pytest.importorskip("onnx")
    nodes = onnx.load(smooth.bundle.folder / "core.int8.onnx", load_external_data=False).graph.node
    assert sum(node.name.startswith("smooth/") for node in nodes) == 2 * 2  # of input and weights, for both products
    products = {
        name: [layer.alone for layer in calibration.results.layers if layer.kind == "MatMul"]
        for name, calibration in (("smooth", smooth), ("plain", int8))
    }
    assert sum(products["smooth"]) > sum(products["plain"])


def test_a_layer_that_takes_nothing_but_zeros(bundle_copy, tmp_path, photos, cache):
    """The convolution before it gives zeros: it stays float, and a warning names it."""
    onnx = pytest.importorskip("onnx")
    for path in bundle_copy.glob("perceive.fp*.onnx"):
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("first."):
                array = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(array), tensor.name))
        onnx.save(model, path)
    _trust(bundle_copy)
    made = calibrate(Bundle.load(bundle_copy), photos(), tmp_path / "int8.e4d", cache=cache)
    assert made.results.warnings == ("perceive/second/Conv_2 takes nothing but zeros, and stays float.",)
    second = next(layer for layer in made.results.layers if layer.name == "second/Conv_2")
    assert (second.int8, second.alone) == (False, None)


def _trust(folder) -> None:
    """Writes the files' own sizes and checksums into the description."""
    from edge4d.runtime.bundle import sha256_of

    description = json.loads((folder / "bundle.json").read_text())
    for path in description["files"]:
        description["files"][path] = {
            "bytes": (folder / path).stat().st_size,
            "sha256": sha256_of(folder / path),
        }
    (folder / "bundle.json").write_text(json.dumps(description))


def test_islands_in_float32_stay_float(float_bundle):
    bundle = Bundle.load(float_bundle)
    layers = {layer.name for layer in read_stages(bundle)["core"].layers}
    assert "body.join/Conv_25" in layers
    assert not any(name.startswith("lift") for name in layers)


def test_both_float_variants_are_needed(float_bundle, tmp_path, photos, cache):
    bundle = Bundle.load(float_bundle)
    stages = {name: replace(stage, graphs={"fp32": stage.graph("fp32")}) for name, stage in bundle.stages.items()}
    with pytest.raises(PrecisionNotInBundle, match="no fp16 graph"):
        calibrate(replace(bundle, stages=stages), photos(), tmp_path / "int8.e4d", cache=cache)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "best"}, "no calibration method 'best'"),
        ({"smooth": 1.5}, "alpha cannot be used"),
        ({"keep_above": float("nan")}, "cannot be kept to that"),
        ({"output": "int8"}, "cannot be named 'int8'"),
        ({"output": "taken.e4d"}, "is not a bundle"),
    ],
)
def test_arguments_that_cannot_be_used(float_bundle, tmp_path, photos, arguments, words):
    (tmp_path / "taken.e4d").mkdir()
    output = tmp_path / arguments.pop("output", "int8.e4d")
    with pytest.raises(InvalidRequest, match=words):
        calibrate(Bundle.load(float_bundle), photos(), output, **arguments)


def test_photographs_of_another_size(float_bundle, tmp_path, photos, cache):
    data = replace(photos(), size=(48, 32))
    with pytest.raises(InvalidRequest, match=r"cannot see pictures of this size[\s\S]*48x32"):
        calibrate(Bundle.load(float_bundle), data, tmp_path / "int8.e4d", cache=cache)
    assert not (tmp_path / "int8.e4d").exists()


def test_a_damaged_ledger_is_measured_again(float_bundle, tmp_path, photos, cache, int8):
    (ledger,) = cache.iterdir()
    ledger.write_text("{")
    assert calibrate(Bundle.load(float_bundle), photos(), tmp_path / "again.e4d", cache=cache).reused == 0


# ---- what the bundle says of it --------------------------------------------------------------------------------------


def test_the_bundle_says_what_is_quantized(int8):
    summary = int8_summary(int8.bundle)
    assert (summary.method, summary.data) == ("percentile", "pictures 3, samples 3")
    assert summary.cpu == pytest.approx(int8.results.cpu.mean)
    perceive, core = summary.stages
    assert (perceive.stage, perceive.layers, core.stage, core.layers) == ("perceive", 2, "core", 8)
    assert [line.split()[0] for line in summary_lines(int8.bundle)] == ["int8"] * 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "layers": 3}'])
def test_a_description_that_cannot_be_read(int8, tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InvalidBundle, match=r"'calibration.json' of '.*' cannot be read[\s\S]*edge4d calibrate"):
        int8_summary(replace(int8.bundle, folder=tmp_path))


# ---- engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.rtx
@pytest.mark.parametrize("capability", ["89", "120"])
def test_every_int8_stage_becomes_an_engine(int8, capability):
    from edge4d.runtime.bundle_engines import profiles
    from edge4d.runtime.engine_from_onnx import BuildRequest, engine_from_onnx

    for stage in int8.bundle.stages.values():
        shapes = profiles(stage, [tensor.name for tensor in stage.inputs])
        graph = stage.graph("int8").whole
        assert len(engine_from_onnx(BuildRequest(graph, "tensorrt_rtx", "int8", shapes, capability))) > 10_000


def test_a_cache_that_cannot_be_written_costs_time_alone(float_bundle, tmp_path, photos, int8):
    (tmp_path / "cache").write_text("a file")
    made = calibrate(Bundle.load(float_bundle), photos(), tmp_path / "int8.e4d", cache=tmp_path / "cache")
    assert made.results == int8.results
