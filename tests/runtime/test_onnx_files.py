"""External data of ONNX files: found wherever a file can hide it, in any bytes without another error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge4d.runtime.onnx_files import external_locations

onnx = pytest.importorskip("onnx")

from onnx import GraphProto, ModelProto, SparseTensorProto, TensorProto, helper  # noqa: E402


def tensor(location: str) -> TensorProto:
    result = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    result.external_data.add(key="offset", value="64")
    result.external_data.add(key="location", value=location)
    return result


def graph(*nodes: onnx.NodeProto, name: str = "g") -> GraphProto:
    return helper.make_graph(list(nodes), name, [], [])


def everywhere() -> ModelProto:
    sparse = SparseTensorProto(values=tensor("values"), indices=tensor("indices"))
    inner = graph(helper.make_node("Constant", [], ["d"], value=tensor("deep")))
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor("attribute")),
        helper.make_node("Many", [], ["b"], several=[tensor("list"), tensor("ünï")]),
        helper.make_node("If", ["c"], ["d"], then_branch=inner),
        helper.make_node("Many", ["c"], ["e"], branches=[graph(nodes_of("in a list"))]),
        helper.make_node("Constant", [], ["f"], sparse_value=sparse),
    ]
    model = helper.make_model(graph(*nodes))
    model.graph.initializer.append(tensor("initialiser"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor("sparse initialiser"))
    model.functions.add().node.append(nodes_of("function"))
    model.functions[0].attribute_proto.append(helper.make_attribute("default", tensor("default")))
    model.training_info.add().algorithm.CopyFrom(graph(nodes_of("training")))
    return model


def nodes_of(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["x"], value=tensor(location))


LOCATIONS = {"values", "indices", "deep", "attribute", "list", "ünï", "in a list", "initialiser", "sparse initialiser"}
LOCATIONS |= {"function", "default", "training"}


def test_every_place_of_a_tensor_is_found(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(everywhere().SerializeToString())
    assert external_locations(tmp_path / "g.onnx") == LOCATIONS


def test_without_external_data_there_is_none(tmp_path: Path) -> None:
    for data in (b"", helper.make_model(graph()).SerializeToString()):
        (tmp_path / "g.onnx").write_bytes(data)
        assert external_locations(tmp_path / "g.onnx") == set()


def test_graphs_nested_without_end_are_walked(tmp_path: Path) -> None:
    data = b""
    for _ in range(3000):  # deeper than Python calls: a node's attribute holds a graph, which holds a node
        for field in (6, 5, 1):
            size, length = len(data), b""
            while size > 127:
                length, size = length + bytes([size & 127 | 128]), size >> 7
            data = bytes([field << 3 | 2]) + length + bytes([size]) + data
    (tmp_path / "g.onnx").write_bytes(data)
    assert external_locations(tmp_path / "g.onnx") == set()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), at=st.integers(0, 1000), cut=st.integers(0, 20))
def test_any_damage_is_read_or_refused(tmp_path: Path, data: bytes, at: int, cut: int) -> None:
    whole = everywhere().SerializeToString()
    damaged = whole[:at] + data + whole[at + cut :]
    (tmp_path / "g.onnx").write_bytes(damaged)
    found = None
    with contextlib.suppress(ValueError):  # any other exception fails
        found = external_locations(tmp_path / "g.onnx")
    with contextlib.suppress(Exception):  # protobuf's own, where it refuses the bytes
        model = onnx.load_from_string(damaged)
        named = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data}
        assert found is None or {name for name in named if "initialiser" in name} <= found
