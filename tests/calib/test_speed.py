"""Which layers go back to fp16 for their time: by a backend with a table of times, and on a GPU where there is one."""

from __future__ import annotations

import shutil

import pytest

from edge4d.calib.calibrate import calibrate
from edge4d.calib.mixes import Mixes, calibrated, read_stages
from edge4d.calib.ranges import making_scenes, observe
from edge4d.calib.speed import not_slower, speeds
from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.bundle import Bundle
from edge4d.runtime.layers import LayerRun, Measurement
from edge4d.runtime.profile import GpuRun

ONE, JOIN = "core/body.one/Conv_14", "core/body.join/Conv_25"


@pytest.fixture
def mixes(float_bundle, tmp_path, photos):
    bundle, data = Bundle.load(float_bundle), photos()
    folder = shutil.copytree(float_bundle, tmp_path / "work")
    stages = read_stages(bundle)
    watched = {name: stage.watched() for name, stage in stages.items()}
    seen = observe(watched, making_scenes(bundle, data), folder, method="minmax")
    return Mixes(bundle, {name: calibrated(stage, seen[name], None) for name, stage in stages.items()}, folder)


class Timetable:
    """A backend whose stages take as long as their layers, and what is said to be between them, do.

    Args:
        half, int8: milliseconds of a layer by its id; 1 for the others.
        between: what a stage takes longer as soon as something in it is int8.
    """

    name = "tensorrt"

    def __init__(self, mixes: Mixes, half=None, int8=None, between: float = 0.0) -> None:
        self.mixes, self.half, self.int8, self.between = mixes, half or {}, int8 or {}, between
        self.built: list[str] = []

    def look_inside(self, bundle, stage, precision, inputs, runs):
        import onnx

        self.built.append(f"{stage} {precision}")
        whole = bundle.stage(stage).graph(precision).whole
        assert bundle.files[whole.name].bytes == whole.stat().st_size  # the engine cache asks for these
        nodes = onnx.load(whole, load_external_data=False).graph.node
        quantized = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
        runs_of_layers, start = [], 0.0
        for key in self.mixes.ids:
            if key.startswith(f"{stage}/"):
                name = key.partition("/")[2]
                node = next(node for node in nodes if node.name == name)
                is_int8 = node.input[1].removesuffix(".half") + ".rounded" in quantized
                ms = (self.int8 if is_int8 else self.half).get(key, 1.0)
                # As TensorRT joins names.
                joined = f"{name}.weight + QuantizeLinear/{name}.weight + {name} + Relu_1" if is_int8 else f"{name} + x"
                runs_of_layers.append(LayerRun(joined, "Conv", start, ms, (), (), 0, 0))
                start += ms
        total = start + (self.between if quantized else 0.0)
        return Measurement([runs_of_layers] * runs, [GpuRun(0.0, 0.0, total, 0.0)] * runs)


INPUTS = {"perceive": {}, "core": {}}


def test_a_faster_mix_stays_as_it_is(mixes):
    times = Timetable(mixes, int8=dict.fromkeys(mixes.ids, 0.5))
    assert not_slower(mixes, mixes.ids, times, INPUTS) == set(mixes.ids)
    assert times.built == ["perceive fp16", "perceive int8", "core fp16", "core int8"]


def test_a_slower_layer_does_not_matter_in_a_faster_stage(mixes):
    times = Timetable(mixes, int8={name: 1.5 if name == ONE else 0.5 for name in mixes.ids})
    assert not_slower(mixes, mixes.ids, times, INPUTS) == set(mixes.ids)


def test_slower_layers_go_back(mixes):
    times = Timetable(mixes, int8={ONE: 9.0, JOIN: 3.0})
    assert not_slower(mixes, mixes.ids, times, INPUTS) == set(mixes.ids) - {ONE, JOIN}
    assert times.built[-2:] == ["core int8", "core int8"]


def test_a_stage_that_is_slower_between_its_layers_goes_back(mixes):
    times = Timetable(mixes, int8=dict.fromkeys(mixes.ids, 0.99), between=1.0)
    assert not_slower(mixes, mixes.ids, times, INPUTS) == set()


def test_layers_that_were_not_chosen_do_not_come_in(mixes):
    times = Timetable(mixes, int8=dict.fromkeys(mixes.ids, 0.5))
    assert not_slower(mixes, {ONE}, times, INPUTS) == {ONE}


def test_speeds_of_all_precisions(float_bundle):
    found = speeds(Bundle.load(float_bundle), OnnxRuntimeBackend(1), (64, 32), runs=2)
    assert [(speed.stage, speed.precision) for speed in found] == [
        (stage, precision) for stage in ("perceive", "core") for precision in ("fp32", "fp16")
    ]
    assert all(speed.ms > 0 and speed.backend == "onnxruntime" for speed in found)


@pytest.mark.gpu
def test_on_a_gpu(float_bundle, tmp_path, photos):
    """The mix that TensorRT is not slower with is built and runs; which layers it holds is the GPU's affair."""
    pytest.importorskip("tensorrt")
    from edge4d.runtime.backends.tensorrt import TensorRtBackend
    from edge4d.runtime.engine_cache import EngineCache

    backend = TensorRtBackend(EngineCache(tmp_path / "engines"))
    made = calibrate(
        Bundle.load(float_bundle), photos(), tmp_path / "int8.e4d", tensorrt=backend, cache=tmp_path / "cache"
    )
    in_engine = {(layer.stage, layer.name) for layer in made.results.layers if layer.in_engine}
    assert in_engine <= {(layer.stage, layer.name) for layer in made.results.layers if layer.int8}
    found = speeds(made.bundle, backend, made.bundle.config["size"], runs=3)
    assert [speed.precision for speed in found] == ["fp32", "fp16", "int8"] * 2
    assert all(speed.engine_bytes > 0 for speed in found)


@pytest.mark.gpu
def test_tensorrt_computes_the_layers_in_int8(mixes, tmp_path):
    """With every layer chosen, whatever their speed: what the inspector says of the engine's layers, and the result."""
    pytest.importorskip("tensorrt")
    from edge4d.calib.mixes import ENGINE
    from edge4d.runtime.backends.tensorrt import TensorRtBackend
    from edge4d.runtime.engine_cache import EngineCache
    from edge4d.runtime.profile_inputs import sample

    backend = TensorRtBackend(EngineCache(tmp_path / "engines"))
    bundle = mixes.bundle_with(mixes.ids)
    inputs = sample(mixes.bundle, OnnxRuntimeBackend(), "fp32").inputs
    for stage in mixes.stages:
        inside = backend.look_inside(bundle, stage, "int8", inputs[stage], 1)
        names = [name.partition("/")[2] for name in mixes.ids if name.startswith(f"{stage}/")]
        in_int8 = [
            name
            for name in names
            for layer in inside.layer_runs[0]
            if name in layer.name and any(tensor.dtype == "int8" for tensor in layer.inputs)
        ]
        assert in_int8, [(layer.name, [str(tensor) for tensor in layer.inputs]) for layer in inside.layer_runs[0]]
        with backend.engine(bundle, stage, "int8") as engine:
            found = engine.run(inputs[stage])
        expected = OnnxRuntimeBackend().engine(bundle, stage, ENGINE).run(inputs[stage])
        for name, array in expected.items():
            if array.dtype.kind == "f":
                # Both round to the same 8 bits; sums in half or float, and a few values that fall to the other side.
                error = float(((found[name] - array) ** 2).mean() ** 0.5) / (float((array**2).mean() ** 0.5) or 1.0)
                assert error < 0.05, name
