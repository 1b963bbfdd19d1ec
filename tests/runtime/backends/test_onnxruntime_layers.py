"""Layers on ONNX Runtime: every node and operator that ran, in order, in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edge4d.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edge4d.runtime.backends.onnxruntime_layers import layer_runs
from edge4d.runtime.bundle import Axis, Graph, OperatorStep, SessionStep, Stage, TensorSpec
from edge4d.runtime.errors import InvalidTensor
from edge4d.runtime.layers import LayerRun, LooksInside, TensorType

BEFORE = """g (float[n, 3] points) => (float[n, 4] p)
    <float[3, 4] weights = {1,0,0,0, 0,1,0,0, 0,0,1,0}> { q = Neg(points)  p = MatMul(q, weights) }"""
AFTER = "g (float[n, 4] p, int32[2] i) => (float[2, 4] y) { chosen = Gather(p, i)  y = Exp(chosen) }"
RUNS = 3


def write_onnx(path: Path, text: str) -> Path:
    """A graph whose nodes have their outputs' names, prefixed."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two sessions and an operator between them."""
    steps = (
        SessionStep(write_onnx(tmp_path / "before.onnx", BEFORE), ("points",), ("p",)),
        OperatorStep("FarthestPointSample", ("points",), ("i",), {"count": 2}),
        SessionStep(write_onnx(tmp_path / "after.onnx", AFTER), ("p", "i"), ("y",)),
    )
    points, y = TensorSpec("points", "float32", ("N", 3)), TensorSpec("y", "float32", (2, 4))
    return Stage("small", {"N": Axis("N", 1, 8, 64)}, (points,), (y,), {"fp32": Graph(Path("unused"), steps)})


@pytest.fixture
def runs(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[LayerRun]]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    points = np.arange(15, dtype=np.float32).reshape(5, 3)
    result = layer_runs(stage, "fp32", {"points": points}, RUNS, OnnxRuntimeBackend(threads=1)._options)
    assert not any((tmp_path / "temporary").iterdir())  # ONNX Runtime's own files are gone
    return result


def test_every_node_and_operator_is_there_in_order(runs):
    assert isinstance(OnnxRuntimeBackend(threads=1), LooksInside)
    assert len(runs) == RUNS
    for run in runs:
        assert [(layer.name, layer.kind) for layer in run] == [
            ("node_q", "Neg"),
            ("node_p", "MatMul"),
            ("i", "FarthestPointSample"),
            ("node_chosen", "Gather"),
            ("node_y", "Exp"),
        ]


def test_layers_follow_each_other(runs):
    # ONNX Runtime notes whole microseconds: beginning and length may each be one too early or too long.
    rounding_ms = 0.002
    for run in runs:
        assert run[0].start_ms >= 0
        assert all(layer.ms >= 0 for layer in run)
        for layer, after in zip(run, run[1:]):
            assert layer.start_ms + layer.ms <= after.start_ms + rounding_ms


def test_tensors_and_bytes(runs):
    _, product, sampled, _, last = runs[0]
    assert [str(tensor) for tensor in product.inputs] == ["float32[5,3]", "float32[3,4]"]
    assert (product.weights_bytes, product.bytes) == (4 * 12, 4 * (15 + 12 + 20))
    assert sampled.inputs == (TensorType("points", "float32", (5, 3)),)
    assert sampled.outputs == (TensorType("i", "int32", (2,)),)
    assert (sampled.weights_bytes, sampled.bytes) == (0, 4 * (15 + 2))
    assert (last.outputs, last.bytes) == ((TensorType("", "float32", (2, 4)),), 4 * (8 + 8))


def test_inputs_are_checked(stage):
    with pytest.raises(InvalidTensor):
        layer_runs(stage, "fp32", {}, 1, OnnxRuntimeBackend(threads=1)._options)
