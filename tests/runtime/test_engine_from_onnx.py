"""Engines from ONNX: what is asked of each TensorRT, and what TensorRT-RTX, which needs no GPU, makes of our graphs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from edge4d.runtime import bundle_engines
from edge4d.runtime import engine_from_onnx as builder
from edge4d.runtime.bundle import Bundle, Stage, shipped_bundles
from edge4d.runtime.bundle_engines import Target, parts, profiles
from edge4d.runtime.engine_from_onnx import BuildOptions, BuildRequest, Progress, engine_from_onnx
from edge4d.runtime.errors import BackendUnavailable, EngineNotBuilt

# ---- what each version is asked for: fakes that have the attributes which it has ------------------------------------


class TacticSource(Enum):
    CUBLAS = 0
    CUBLAS_LT = 1
    CUDNN = 2
    EDGE_MASK_CONVOLUTIONS = 3
    JIT_CONVOLUTIONS = 4


def fake(network_flags: str, builder_flags: str) -> Any:
    return SimpleNamespace(
        NetworkDefinitionCreationFlag=SimpleNamespace(**dict.fromkeys(network_flags.split(), 0)),
        BuilderFlag=SimpleNamespace(**dict.fromkeys(builder_flags.split(), 0)),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere+"),
        TacticSource=TacticSource,
        LayerType=SimpleNamespace(
            CAST="cast",
            QUANTIZE="quantize",
            DEQUANTIZE="dequantize",
            SHUFFLE="shuffle",
        ),
        float32="float32",
        float16="float16",
    )


TENSORRT_8_6 = fake("EXPLICIT_BATCH", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS")
TENSORRT_10_3 = fake("EXPLICIT_BATCH STRONGLY_TYPED", "FP16 INT8 TF32 OBEY_PRECISION_CONSTRAINTS")
TENSORRT_11 = fake("PREFER_JIT_PYTHON_PLUGINS", "TF32 REFIT")


def request(**fields: Any) -> BuildRequest:
    return BuildRequest(
        **{"onnx": Path("a.onnx"), "library": "tensorrt", "precision": "fp16", "profiles": {}, **fields}
    )


def test_only_8_6_chooses_types_itself():
    assert builder.weakly_typed(TENSORRT_8_6)
    assert not builder.weakly_typed(TENSORRT_10_3)
    assert not builder.weakly_typed(TENSORRT_11)


@pytest.mark.parametrize(
    ("types", "fp16", "int8"),
    [("float32 int64", False, False), ("float32 float16", True, False), ("float32 int8", True, True)],
)
def test_8_6_may_use_the_types_of_the_graph_alone(types, fp16, int8):
    found = builder.flags_of_types(dict(enumerate(types.split())))
    assert found == {"fp16": fp16, "int8": int8}
    assert builder.config_arguments(TENSORRT_8_6, request())["precision_constraints"] == "obey"


@pytest.mark.parametrize("trt", [TENSORRT_10_3, TENSORRT_11], ids=["10.3", "11"])
def test_later_versions_get_no_flags_of_precision(trt):
    assert builder.config_arguments(trt, request()) == {"profiling_verbosity": "detailed"}


def test_8_6_does_without_other_libraries():
    sources = builder.config_arguments(TENSORRT_8_6, request())["tactic_sources"]
    assert sources == [TacticSource.EDGE_MASK_CONVOLUTIONS, TacticSource.JIT_CONVOLUTIONS]


def test_options(tmp_path):
    cache = tmp_path / "timing.cache"
    wanted = request(
        options=BuildOptions(level=2, workspace_mib=64, hardware_compatible=True),
        compute_capability="120",
        timing_cache=cache,
    )
    arguments = builder.config_arguments(TENSORRT_10_3, wanted)
    assert arguments == {
        "profiling_verbosity": "detailed",
        "builder_optimization_level": 2,
        "memory_pool_limits": {"workspace": 64 * 1024 * 1024},
        "hardware_compatibility_level": "ampere+",
        "compute_capabilities": [(12, 0)],
    }
    cache.write_bytes(b"")
    assert builder.config_arguments(TENSORRT_10_3, wanted)["load_timing_cache"] == str(cache)
    assert "load_timing_cache" not in builder.config_arguments(TENSORRT_8_6, wanted)


class Layer:
    """A layer of a network with tensors of these names and, as 8.6 sees them, types: what is set of it is kept."""

    def __init__(self, kind: str, inputs: str = "x", **outputs: str) -> None:
        self.type, self.of_shapes = kind, kind == "range"
        self.inputs = [SimpleNamespace(name=name, is_shape_tensor=self.of_shapes) for name in inputs.split()]
        self.outputs = [SimpleNamespace(name=name, dtype=dtype) for name, dtype in outputs.items()]
        self.num_inputs, self.num_outputs = len(self.inputs), len(outputs)
        self.precision, self.output_types = None, {}

    def get_input(self, i: int) -> Any:
        return self.inputs[i]

    def get_output(self, i: int) -> Any:
        return self.outputs[i]

    def set_output_type(self, i: int, dtype: str) -> None:
        self.output_types[i] = dtype


FLOAT, HALF = "float32", "float16"


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (Layer("norm", "x", norm=FLOAT), FLOAT),
        (Layer("cast", cast=HALF), None),
        (Layer("conv", conv=FLOAT), HALF),  # 8.6 does not see halves before it builds
        (Layer("topk", best=FLOAT, places="int32"), HALF),
        (Layer("shape", shape="int32"), None),
        (Layer("range", range=FLOAT), None),
        (Layer("dequantize", rounded=FLOAT), None),
        (Layer("conv", sum=FLOAT), None),
        (Layer("shuffle", moved=FLOAT), None),
        (Layer("sink"), None),
    ],
)
def test_layers_keep_the_types_of_the_graph(layer, precision):
    types = {"norm": FLOAT, "cast": HALF, "conv": HALF, "best": HALF, "places": "int64", "range": FLOAT}
    types |= {"rounded": FLOAT, "sum": "int8", "moved": FLOAT}
    keep_types([layer], types)
    assert layer.precision == precision
    assert layer.output_types == ({} if precision is None else {0: precision})


def test_what_the_parser_adds_keeps_the_type_of_its_node():
    layers = [Layer("constant", "", scale=FLOAT), Layer("norm", "x scale", norm=FLOAT)]
    layers += [Layer("constant", "", weights=HALF), Layer("conv", "norm weights", conv=FLOAT)]
    keep_types(layers, {"norm": FLOAT, "conv": HALF})
    assert [layer.precision for layer in layers] == [FLOAT, FLOAT, HALF, HALF]


def keep_types(layers: list[Layer], types: dict[str, str]) -> None:
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    builder.keep_types(TENSORRT_8_6, network, types)


def test_types_of_a_graph():
    graph = Bundle.load("street").stage("core").graph("fp16").whole
    types = builder.graph_types(graph)
    assert (types["image"], types["instances"], types["motion_maps"]) == ("float32", "int32", "float32")
    assert builder.flags_of_types(types) == {"fp16": True, "int8": False}


def test_what_is_arithmetic_alone_has_no_halves():
    for stage in ("readout", "lift"):
        for precision in ("fp16", "int8"):
            types = builder.graph_types(Bundle.load("street").stage(stage).graph(precision).whole)
            assert builder.flags_of_types(types) == {"fp16": False, "int8": False}


def test_what_is_made_of_rounded_tensors_may_be_int8():
    graph = onnx.load(path := Bundle.load("street").stage("core").graph("int8").whole, load_external_data=False).graph
    types = builder.graph_types(path)
    convolutions = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Conv"}
    in_int8 = {name for name in convolutions if types[name] == "int8"}
    assert 0.5 < len(in_int8) / len(convolutions) < 1
    rounded = {name for name, source in convolutions.items() if source.endswith((".half", ".rounded"))}
    assert in_int8 == rounded


# ---- the other process ----------------------------------------------------------------------------------------------


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text('raise ImportError("it is not here")')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    with pytest.raises(
        BackendUnavailable, match=r"TensorRT is not installed[\s\S]*not here[\s\S]*pip install tensorrt"
    ):
        builder.library_version("tensorrt")


@pytest.mark.rtx
def test_the_version_is_what_the_library_says():
    script = "import tensorrt_rtx; print(tensorrt_rtx.__version__)"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert builder.library_version("tensorrt_rtx") == said.strip()


def shapes(stage: Stage) -> dict[str, builder.Profile]:
    return profiles(stage, [tensor.name for tensor in stage.inputs])


@pytest.mark.rtx
@pytest.mark.parametrize("capability", ["89", "120"])
@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name in shipped_bundles() for precision in Bundle.load(name).precisions],
)
def test_every_stage_becomes_engines(name, precision, capability):
    bundle, target = Bundle.load(name), Target("tensorrt_rtx", "", capability)
    for stage in bundle.stages.values():
        size = 0
        for part in parts(stage, precision, target.library):
            said: list[Progress] = []
            wanted = bundle_engines.request(stage, part, precision, target, BuildOptions())
            engine = engine_from_onnx(wanted, said.append)
            assert [progress.phase for progress in said[:2]] == ["parse", "build"]
            assert said[-1].step == said[-1].steps - 1 or said[-1].step == said[-1].steps > 1
            size += len(engine)
        weights = bundle.files.get(f"{stage.name}.weights")
        assert size > (weights.bytes if weights else 0)


@pytest.fixture(scope="module")
def perceive() -> BuildRequest:
    stage = Bundle.load("street").stage("perceive")
    return BuildRequest(stage.graph("fp16").whole, "tensorrt_rtx", "fp16", shapes(stage), "89")


@pytest.mark.rtx
def test_a_graph_that_cannot_be_read(tmp_path, perceive):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(perceive.onnx.read_bytes()[:5000])
    with pytest.raises(EngineNotBuilt, match=r"could not build an engine from 'damaged.onnx'[\s\S]*Note: \[E\]"):
        engine_from_onnx(perceive._replace(onnx=damaged))


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compute_capability": "77"}, "7.7"),
        ({"profiles": {"image": ((1, 3, 64, 64), (1, 3, 32, 32), (1, 3, 96, 96))}}, "MIN<=OPT<=MAX"),
        ({"profiles": {"nobody": ((1,), (1,), (1,))}}, "nobody"),
    ],
)
def test_requests_that_the_library_refuses(perceive, change, words):
    with pytest.raises(EngineNotBuilt, match=words):
        engine_from_onnx(perceive._replace(**change))


@pytest.mark.rtx
def test_a_builder_that_is_killed(perceive, monkeypatch):
    started: list[subprocess.Popen[str]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(builder.subprocess, "Popen", Popen)
    with pytest.raises(EngineNotBuilt, match=f"ended by signal {signal.SIGKILL.value}"):
        engine_from_onnx(perceive, lambda progress: started[0].kill())


@pytest.mark.rtx
def test_nobody_waits_for_a_build_that_is_given_up(perceive):
    def give_up(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(perceive, give_up)


def test_a_builder_ends_with_who_asked_for_it(tmp_path):
    (tmp_path / "tensorrt.py").write_text("import time; time.sleep(600)")  # a build that takes long
    asks = """
import subprocess
from pathlib import Path
from edge4d.runtime import bundle_engines
from edge4d.runtime import engine_from_onnx as builder
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print(self.pid, flush=True)
builder.subprocess.Popen = Popen
builder.engine_from_onnx(builder.BuildRequest(Path("a.onnx"), "tensorrt", "fp32", {}))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        builder_pid = int(process.stdout.readline())
        time.sleep(0.5)  # it has its request
        process.kill()
    deadline = time.monotonic() + 60
    while runs(builder_pid):
        assert time.monotonic() < deadline, "the builder goes on"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
