"""The reader of bundles: what it reads, and that every kind of damage is refused by name."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge4d.runtime.bundle import (
    MAX_DESCRIPTION_BYTES,
    Axis,
    Bundle,
    OperatorStep,
    SessionStep,
    TensorSpec,
    check_stage_tensors,
    dim_at,
)
from edge4d.runtime.errors import InvalidBundle, InvalidRequest, PrecisionNotInBundle

GRAPH = b"\x12\x12stands for a graph"  # as the name of its producer, a text of 18 bytes
AXIS = {"min": 32, "opt": 64, "max": 128, "multiple_of": 32}
DESCRIPTION = {
    "format": 1,
    "system": "test",
    "config": {"layers": 2},
    "precisions": ["fp32", "fp16"],
    "stages": [
        {
            "name": "core",
            "axes": {"H": AXIS, "W": AXIS},
            "inputs": [
                {"name": "image", "dtype": "float32", "shape": [1, 3, "H", "W"]},
                {"name": "noise", "dtype": "float32", "shape": [1, 8, "H/16", "W/16"]},
            ],
            "outputs": [{"name": "means", "dtype": "float32", "shape": [1, "2*H*W", 3]}],
            "graphs": {
                precision: {
                    "whole": "core.onnx",
                    "steps": [
                        {"onnx": "core.onnx", "inputs": ["image", "noise"], "outputs": ["a"]},
                        {
                            "operator": "FarthestPointSample",
                            "inputs": ["a"],
                            "outputs": ["b"],
                            "attributes": {"count": 4},
                        },
                        {"onnx": "core.onnx", "inputs": ["a", "b"], "outputs": ["means"]},
                    ],
                }
                for precision in ("fp32", "fp16")
            },
        }
    ],
    "files": {"core.onnx": {"bytes": len(GRAPH), "sha256": hashlib.sha256(GRAPH).hexdigest()}},
    "camera": {"width": 64, "height": 32, "intrinsics": [50.0, 50.0, 32.0, 16.0]},
    "licence": "Apache-2.0",
    "provenance": {"seed": 7},
}


def write(folder: Path, description: object = DESCRIPTION) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "core.onnx").write_bytes(GRAPH)
    text = description if isinstance(description, str) else json.dumps(description)
    (folder / "bundle.json").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "small.e4d")


def changed(**changes: object) -> dict[str, object]:
    return {**copy.deepcopy(DESCRIPTION), **changes}


def changed_stage(**changes: object) -> dict[str, object]:
    description = copy.deepcopy(DESCRIPTION)
    description["stages"][0].update(changes)
    return description


def test_reads_what_is_written(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert (bundle.name, bundle.system, bundle.precisions) == ("small", "test", ("fp32", "fp16"))
    assert bundle.config == {"layers": 2}
    assert bundle.provenance == {"seed": 7}
    assert bundle.licence == "Apache-2.0"
    assert (bundle.camera.width, bundle.camera.height) == (64, 32)
    assert bundle.camera.intrinsics == (50.0, 50.0, 32.0, 16.0)
    stage = bundle.stage("core")
    assert stage.axes["H"] == Axis("H", 32, 64, 128, 32)
    assert stage.inputs[1] == TensorSpec("noise", "float32", (1, 8, "H/16", "W/16"))
    graph = stage.graph("fp16")
    assert graph.whole == folder / "core.onnx"
    assert [type(step) for step in graph.steps] == [SessionStep, OperatorStep, SessionStep]
    assert graph.steps[1].attributes == {"count": 4}


def bundle_of(folder: Path, **stages: str) -> Bundle:
    """Its stages take and give the tensors "TAKEN > GIVEN"."""
    bundle = Bundle.load(folder)

    def specs(names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", (1,)) for name in names.split())

    made = {
        name: replace(bundle.stage("core"), name=name, inputs=specs(taken), outputs=specs(given))
        for name, (taken, given) in ((name, text.split(">")) for name, text in stages.items())
    }
    return replace(bundle, stages=made)


@pytest.mark.parametrize(
    ("given", "names", "missing"),
    [
        ("photo noise", "see read move", ""),
        ("photo noise ids", "see read move", ""),  # depth is missing
        ("photo noise depth ids", "move", ""),
        ("photo noise depth ids motion", "", ""),
        ("photo", "see read move", "noise"),
        ("", "see read move", "photo noise"),
    ],
)
def test_stages_that_lead_from_some_tensors_to_others(folder: Path, given: str, names: str, missing: str) -> None:
    bundle = bundle_of(
        folder, see="photo > maps", read="maps > depth ids", draw="photo > picture", move="depth ids noise > motion"
    )
    assert bundle.inputs == {"photo", "noise"}
    assert bundle.leading_to(["motion"], given.split()) == (names.split(), set(missing.split()))


def test_names_and_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for path in (folder, Path("small.e4d"), "small.e4d", "./small.e4d", str(folder)):
        assert Bundle.load(path).name == "small"
    folder.rename(folder.with_suffix(""))
    assert Bundle.load("./small").name == "small"
    with pytest.raises(InvalidBundle, match="There is no bundle 'small'"):
        Bundle.load("small")  # a bare name is a shipped bundle's
    for name in ("../x", "nothing.e4d", "a\0b", "x" * 5000):
        with pytest.raises(InvalidBundle, match="no bundle"):
            Bundle.load(name)


def test_sizes_of_derived_dimensions() -> None:
    assert dim_at("2*H*W", {"H": 32, "W": 64}) == 4096
    assert dim_at("H/16", {"H": 32}) == 2
    assert dim_at(7, {}) == 7
    assert TensorSpec("x", "int32", (1, "H", "2*W/4")).shape_at({"H": 3, "W": 8}) == (1, 3, 4)


def test_axis_knows_its_sizes() -> None:
    axis = Axis("H", 64, 256, 1024, 32)
    assert axis.allows(96)
    assert not axis.allows(100)
    assert not axis.allows(32)
    assert [axis.nearest(size) for size in (1, 100, 113, 5000)] == [64, 96, 128, 1024]


@pytest.mark.parametrize("sizes", [(0, 1, 2, 1), (2, 1, 3, 1), (32, 33, 64, 32), (1, 1, 2**31, 1), (1, 1, 1, 0)])
def test_axis_refuses_sizes_that_cannot_be(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="Axis H"):
        Axis("H", *sizes)


def test_stage_tensors_must_follow_from_inputs() -> None:
    axes = {"H": Axis("H", 32, 32, 64, 32)}
    plain = TensorSpec("x", "float32", ("H",))
    with pytest.raises(InvalidRequest, match="No input has axis H"):
        check_stage_tensors(axes, [TensorSpec("x", "float32", ("H/16",))], [])
    with pytest.raises(InvalidRequest, match="uses axes"):
        check_stage_tensors(axes, [plain], [TensorSpec("y", "float32", ("W",))])
    with pytest.raises(InvalidRequest, match="not always a whole number"):
        check_stage_tensors(axes, [plain], [TensorSpec("y", "float32", ("H/5",))])
    with pytest.raises(InvalidRequest, match="same name"):
        check_stage_tensors(axes, [plain, plain], [])


def test_a_precision_is_never_replaced(folder: Path) -> None:
    with pytest.raises(PrecisionNotInBundle, match="no int8 graph"):
        Bundle.load(folder).stage("core").graph("int8")
    with pytest.raises(InvalidBundle, match="no stage 'dino'"):
        Bundle.load(folder).stage("dino")


BAD_DESCRIPTIONS = {
    "version": (changed(format=2), "format that this edge4d cannot read"),
    "version is a truth value": (changed(format=True), "must be a whole number"),
    "no system": ({key: value for key, value in DESCRIPTION.items() if key != "system"}, "has no 'system'"),
    "a list": ([], "not a JSON object"),
    "not JSON": ("{", "not the JSON"),
    "NaN": ('{"format": NaN}', "not a number of JSON"),
    "infinite": ('{"format": 1e999}', "too large"),
    "long integer": ('{"format": ' + "9" * 5000 + "}", "not the JSON|format that"),
    "deep": ("[" * 100_000, "not the JSON"),
    "key twice": ('{"format": 1, "format": 1}', "occurs twice"),
    "no precisions": (changed(precisions=[]), "precisions"),
    "unknown precision": (changed(precisions=["fp32", "fp8"]), "precisions"),
    "precision is a number": (changed(precisions=[32]), "must hold a text only"),
    "stage twice": (changed(stages=DESCRIPTION["stages"] * 2), "same name"),
    "stages is text": (changed(stages="core"), "must be a list"),
    "config is a list": (changed(config=[1]), "must be an object"),
    "camera without size": (changed(camera={"intrinsics": [1, 1, 1, 1]}), "no 'width'"),
    "camera too large": (changed(camera={**DESCRIPTION["camera"], "width": 10**9}), "default camera"),
    "camera with text": (changed(camera={**DESCRIPTION["camera"], "intrinsics": ["1", 1, 1, 1]}), "four numbers"),
    "camera singular": (changed(camera={**DESCRIPTION["camera"], "intrinsics": [0, 1, 1, 1]}), "default camera"),
    "camera of a huge number": (
        changed(camera={**DESCRIPTION["camera"], "intrinsics": [10**400, 1, 1, 1]}),
        "default camera",
    ),
    "dimension 0": (changed_stage(outputs=[{"name": "y", "dtype": "float32", "shape": [0]}]), "dimension 0"),
    "dimension too large": (changed_stage(outputs=[{"name": "y", "dtype": "float32", "shape": [2**40]}]), "dimension"),
    "dimension true": (changed_stage(outputs=[{"name": "y", "dtype": "float32", "shape": [True]}]), "shape of tensor"),
    "dimension is code": (changed_stage(outputs=[{"name": "y", "dtype": "float32", "shape": ["H**9"]}]), "dimension"),
    "product too large": (
        changed_stage(outputs=[{"name": "y", "dtype": "float32", "shape": ["999999999*H*W"]}]),
        "whole number in range",
    ),
    "dtype": (changed_stage(inputs=[{"name": "x", "dtype": "complex128", "shape": [1]}]), "dtype"),
    "axis": (changed_stage(axes={"H": {**AXIS, "min": 33}, "W": AXIS}), "not multiples"),
    "tensor's name": (changed_stage(inputs=[{"name": "a b", "dtype": "float32", "shape": [1]}]), "cannot be named"),
    "stage's name": (changed_stage(name="../core"), "cannot be named"),
    "graph missing": (changed_stage(graphs={"fp32": DESCRIPTION["stages"][0]["graphs"]["fp32"]}), "graphs of stage"),
    "file not listed": (changed(files={}), "not listed"),
}


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_bad_descriptions_are_refused(tmp_path: Path, name: str) -> None:
    description, message = BAD_DESCRIPTIONS[name]
    with pytest.raises(InvalidBundle, match=message):
        Bundle.load(write(tmp_path / "bad.e4d", description))


def with_steps(*steps: dict[str, object]) -> dict[str, object]:
    graph = {"whole": "core.onnx", "steps": list(steps)}
    return changed_stage(graphs={"fp32": graph, "fp16": graph})


SAMPLE = {"operator": "FarthestPointSample", "inputs": ["image"], "outputs": ["means"], "attributes": {"count": 4}}
BAD_STEPS = {
    "reads before it is made": (with_steps({"onnx": "core.onnx", "inputs": ["z"], "outputs": ["means"]}), "follow"),
    "makes an input": (with_steps({"onnx": "core.onnx", "inputs": [], "outputs": ["image"]}), "do not follow"),
    "makes it twice": (with_steps({"onnx": "core.onnx", "inputs": [], "outputs": ["means", "means"]}), "follow"),
    "lacks an output": (with_steps(), "do not make all"),
    "unknown operator": (with_steps({**SAMPLE, "operator": "Eval"}), "no operator"),
    "wrong number of inputs": (with_steps({**SAMPLE, "inputs": ["image", "noise"]}), "number of tensors"),
    "unknown attribute": (with_steps({**SAMPLE, "attributes": {"count": 4, "more": 1}}), "wrong attributes"),
    "attribute of another type": (with_steps({**SAMPLE, "attributes": {"count": "4"}}), "wrong attributes"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps_are_refused(tmp_path: Path, name: str) -> None:
    description, message = BAD_STEPS[name]
    with pytest.raises(InvalidBundle, match=message):
        Bundle.load(write(tmp_path / "bad.e4d", description))


def test_an_operator_step_alone_is_read(tmp_path: Path) -> None:
    graph = Bundle.load(write(tmp_path / "good.e4d", with_steps(SAMPLE))).stage("core").graph("fp32")
    assert graph.steps[0].operator == "FarthestPointSample"


def with_file(path: str) -> dict[str, object]:
    return changed(files={**DESCRIPTION["files"], path: DESCRIPTION["files"]["core.onnx"]})


@pytest.mark.parametrize(
    "path", ["../core.onnx", "/etc/passwd", "a/../../core.onnx", "..", "", ".", "a\\b", "C:x", "a\0b", "./core.onnx"]
)
def test_paths_may_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "core.onnx").write_bytes(GRAPH)
    with pytest.raises(InvalidBundle, match="not a plain relative path"):
        Bundle.load(write(tmp_path / "bad.e4d", with_file(path)))


def test_links_may_not_leave_the_folder(tmp_path: Path, folder: Path) -> None:
    outside = tmp_path / "outside"
    (folder / "core.onnx").rename(outside)
    (folder / "core.onnx").symlink_to(outside)
    with pytest.raises(InvalidBundle, match="link to another place"):
        Bundle.load(folder)


def test_a_linked_folder_may_not_leave_either(tmp_path: Path) -> None:
    folder = write(tmp_path / "bad.e4d", with_file("inner/core.onnx"))
    (tmp_path / "core.onnx").write_bytes(GRAPH)
    (folder / "inner").symlink_to(tmp_path)
    with pytest.raises(InvalidBundle, match="link to another place"):
        Bundle.load(folder)


def test_a_link_inside_and_a_link_to_the_folder_are_fine(tmp_path: Path, folder: Path) -> None:
    (folder / "core.onnx").rename(folder / "other.onnx")
    (folder / "core.onnx").symlink_to("other.onnx")
    (tmp_path / "alias.e4d").symlink_to(folder)
    assert Bundle.load(tmp_path / "alias.e4d").system == "test"


def test_link_loops_are_refused(folder: Path) -> None:
    (folder / "core.onnx").unlink()
    (folder / "core.onnx").symlink_to("core.onnx")
    with pytest.raises(InvalidBundle):
        Bundle.load(folder)


def with_external_data(folder: Path, location: str) -> Path:
    """The bundle with a graph whose one initialiser is external, and a listed file `core.weights`."""
    entry = b"\x0a\x08location" + b"\x12" + bytes([len(location.encode())]) + location.encode()
    graph = entry
    for field in (13, 5, 7):  # external_data of a tensor, an initialiser of a graph, the graph of a model
        graph = bytes([field << 3 | 2, len(graph)]) + graph
    (folder / "core.onnx").write_bytes(graph)
    (folder / "core.weights").write_bytes(GRAPH)
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in {"core.onnx": graph, "core.weights": GRAPH}.items()
    }
    (folder / "bundle.json").write_text(json.dumps({**DESCRIPTION, "files": files}))
    return folder


def test_graphs_may_read_listed_files(folder: Path) -> None:
    assert Bundle.load(with_external_data(folder, "core.weights")).system == "test"


@pytest.mark.parametrize(
    "location",
    ["other.weights", "../core.weights", "small.e4d/../core.weights", "/etc/passwd", "", "a\0b", "*/_MEM_/*"],
)
def test_graphs_may_read_nothing_else(folder: Path, location: str) -> None:
    (folder / "other.weights").write_bytes(GRAPH)
    with pytest.raises(InvalidBundle, match=r"'core.onnx' reads the file .* not listed"):
        Bundle.load(with_external_data(folder, location))


def test_graphs_that_are_no_protobuf_are_refused(folder: Path) -> None:
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"\x0a\xffab").hexdigest()}
    (folder / "core.onnx").write_bytes(b"\x0a\xffab")
    (folder / "bundle.json").write_text(json.dumps({**DESCRIPTION, "files": {"core.onnx": entry}}))
    with pytest.raises(InvalidBundle, match="is not an ONNX file"):
        Bundle.load(folder)


def test_missing_altered_and_resized_files_are_refused(folder: Path) -> None:
    file = folder / "core.onnx"
    file.write_bytes(GRAPH[:-1] + b"!")
    with pytest.raises(InvalidBundle, match=r"'core.onnx' of bundle 'small.e4d' was altered"):
        Bundle.load(folder)
    for data in (GRAPH[:-1], GRAPH + b"!", b""):
        file.write_bytes(data)
        with pytest.raises(InvalidBundle, match=rf"It has {len(data)} bytes"):
            Bundle.load(folder)
    file.unlink()
    with pytest.raises(InvalidBundle, match=r"'core.onnx' of bundle 'small.e4d' is missing"):
        Bundle.load(folder)
    file.mkdir()
    with pytest.raises(InvalidBundle, match="is not a file"):
        Bundle.load(folder)


def test_a_pipe_in_place_of_a_file_does_not_hang(folder: Path) -> None:
    (folder / "core.onnx").unlink()
    os.mkfifo(folder / "core.onnx")
    with pytest.raises(InvalidBundle, match="is not a file"):
        Bundle.load(folder)


def test_description_missing_huge_or_not_text(folder: Path) -> None:
    description = folder / "bundle.json"
    description.write_bytes(b" " * (MAX_DESCRIPTION_BYTES + 1))
    with pytest.raises(InvalidBundle, match="too large"):
        Bundle.load(folder)
    description.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(InvalidBundle, match="not the JSON"):
        Bundle.load(folder)
    description.unlink()
    with pytest.raises(InvalidBundle, match=r"'bundle.json' of bundle 'small.e4d' is missing"):
        Bundle.load(folder)


# ---- any damage -----------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["H", "H/16", "2*H*W", "fp32", "core.onnx", "../x", "image", "9" * 400]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def places(node: object) -> list[tuple[object, object]]:
    """Every (container, key) of a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in [(node, key), *places(value)]]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_description_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    description = copy.deepcopy(DESCRIPTION)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(description)))
        if data.draw(st.booleans()):
            container[key] = data.draw(VALUES)
        elif isinstance(container, dict):
            del container[key]
        else:
            container.append(data.draw(VALUES))
        if not places(description):
            break
    with contextlib.suppress(InvalidBundle):  # any other exception fails
        bundle = Bundle.load(write(tmp_path / "any.e4d", description))
        assert set(bundle.stages) == {stage["name"] for stage in description["stages"]}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=20))
def test_any_cut_or_junk_in_the_bytes_is_read_or_refused(tmp_path: Path, cut: int, junk: bytes) -> None:
    folder = write(tmp_path / "any.e4d")
    data = (folder / "bundle.json").read_bytes()
    (folder / "bundle.json").write_bytes(data[:cut] + junk + data[cut + len(junk) :])
    with contextlib.suppress(InvalidBundle):
        Bundle.load(folder)
