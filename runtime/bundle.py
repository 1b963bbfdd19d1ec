"""The bundle format: what a model is on disk, and its reader.

A bundle is a folder `NAME.e4d`. `bundle.json` (UTF-8, at most 1 MiB, no duplicate keys, no NaN) describes it:
    format      1. A reader refuses every other number.
    system      the chain of stages that runs it, such as "pixel_to_4d"; `config` is that system's object.
    precisions  the variants that every stage has, such as ["fp32", "fp16", "int8"].
    stages      each {name, axes, inputs, outputs, graphs}. A tensor is {name, dtype, shape}; a dimension is a number,
                an axis ("H"), or a product of axes over a number ("2*H*W", "H/16"). An axis is {min, opt, max,
                multiple_of}. A graph, one per precision, is {whole, steps}: `whole` is one ONNX file with edge4d's
                operators inside; `steps` is the same graph cut at them, each step {onnx, inputs, outputs} or
                {operator, inputs, outputs, attributes}, run in order. In int8 the two differ: TensorRT's `whole` is
                int8 and float16, `steps` are int8 and float32, as ONNX Runtime computes on a CPU.
    files       {path: {bytes, sha256}} of every file a graph needs; relative, `/` between parts, inside the folder.
                An ONNX file may keep tensors in other files that are listed here (ONNX external data): a stage's files
                share their large weights in `STAGE.weights`. With fp32 and fp16 these are rounded to half, once, and
                the fp32 graph casts them to float32, in which it computes. The int8 graphs round the same weights.
                With int8, `calibration.json` says how that came to be: see `edge4d.runtime.calibration_file`.
    camera      the default camera: {width, height, intrinsics: [fx, fy, cx, cy] in pixels}.
    licence, provenance   an SPDX expression, and an object that says how the weights came to be.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Optional, TypeVar, Union

from edge4d.kernels.ops import OPERATORS, Operator
from edge4d.runtime.camera import Camera
from edge4d.runtime.errors import InvalidBundle, InvalidCamera, InvalidRequest, PrecisionNotInBundle
from edge4d.runtime.onnx_files import external_locations

FORMAT = 1
DESCRIPTION = "bundle.json"
SUFFIX = ".e4d"
PRECISIONS = ("fp32", "fp16", "int8")
DTYPES = ("float32", "float16", "int32", "int64", "uint8", "bool")
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_DIMENSION = 2**31 - 1  # what TensorRT and ONNX Runtime index with

Dim = Union[int, str]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_DERIVED = re.compile(r"(?:\d{1,9}\*)?[A-Za-z]\w{0,31}(?:\*[A-Za-z]\w{0,31}){0,3}(?:/[1-9]\d{0,8})?", re.ASCII)
_AXIS = re.compile(r"[A-Za-z]\w{0,31}", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Axis:
    """A dimension that the caller chooses: from `min` to `max`, in multiples of `multiple_of`, best at `opt`."""

    name: str
    min: int
    opt: int
    max: int
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not _AXIS.fullmatch(self.name):
            raise InvalidRequest(
                f"An axis cannot be named '{self.name}'.", hint="Use a letter, then letters or digits."
            )
        sizes = (self.min, self.opt, self.max)
        if self.multiple_of < 1 or any(size % self.multiple_of for size in sizes):
            raise InvalidRequest(
                f"Axis {self.name} has sizes that are not multiples of {self.multiple_of}.",
                note=f"min, opt, max are {sizes}.",
                hint="Give three multiples.",
            )
        if not 1 <= self.min <= self.opt <= self.max <= MAX_DIMENSION:
            raise InvalidRequest(
                f"Axis {self.name} has sizes in the wrong order.",
                note=f"min, opt, max are {sizes}.",
                hint=f"They must satisfy 1 <= min <= opt <= max <= {MAX_DIMENSION}.",
            )

    def allows(self, size: int) -> bool:
        return self.min <= size <= self.max and size % self.multiple_of == 0

    def nearest(self, size: int) -> int:
        """The allowed size nearest to `size`."""
        rounded = (size + self.multiple_of // 2) // self.multiple_of * self.multiple_of
        return min(max(rounded, self.min), self.max)


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a stage; a dimension is a number, an axis, or a product of axes over a number."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidRequest(f"A tensor cannot be named '{self.name}'.", hint="Use letters, digits, _ and dots.")
        if self.dtype not in DTYPES:
            raise InvalidRequest(
                f"Tensor '{self.name}' has dtype '{self.dtype}'.", hint=f"Known dtypes: {', '.join(DTYPES)}."
            )
        for dim in self.shape:
            valid = _DERIVED.fullmatch(dim) if isinstance(dim, str) else 1 <= dim <= MAX_DIMENSION
            if not valid:
                raise InvalidRequest(
                    f"Tensor '{self.name}' has the dimension {dim!r}.",
                    hint=f"Give 1 to {MAX_DIMENSION}, an axis, or a product such as '2*H*W' or 'H/16'.",
                )

    def axes(self) -> set[str]:
        """The names of all axes in the shape."""
        return {name for dim in self.shape if isinstance(dim, str) for name in factors(dim)[1]}

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, for one size per axis."""
        return tuple(dim_at(dim, sizes) for dim in self.shape)


def factors(dim: str) -> tuple[int, list[str], int]:
    """The parts of a derived dimension: `"2*H*W/16"` → (2, ["H", "W"], 16)."""
    product, _, divisor = dim.partition("/")
    parts = product.split("*")
    number = int(parts.pop(0)) if parts[0].isdigit() else 1
    return number, parts, int(divisor or 1)


def dim_at(dim: Dim, sizes: Mapping[str, int]) -> int:
    """One dimension in numbers; sizes that the bundle allows always divide exactly."""
    if isinstance(dim, int):
        return dim
    number, names, divisor = factors(dim)
    return number * math.prod(sizes[name] for name in names) // divisor


def check_stage_tensors(axes: Mapping[str, Axis], inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
    """Raises InvalidRequest unless the axes of all tensors are known, can be read off an input, and divide exactly."""
    inputs, outputs = tuple(inputs), tuple(outputs)
    plain = {dim for tensor in inputs for dim in tensor.shape if dim in axes}
    largest = {name: axis.max for name, axis in axes.items()}
    for axis in axes:
        if axis not in plain:
            raise InvalidRequest(f"No input has axis {axis} as a dimension of its own, so its size cannot be known.")
    for tensor in (*inputs, *outputs):
        if not tensor.axes() <= set(axes):
            raise InvalidRequest(
                f"Tensor '{tensor.name}' uses axes that its stage does not have.",
                note=f"It has {sorted(tensor.axes())}, the stage {sorted(axes)}.",
            )
        for dim in tensor.shape:
            if isinstance(dim, str):
                number, names, divisor = factors(dim)
                steps = number * math.prod(axes[name].multiple_of for name in names)
                if steps == 0 or steps % divisor or dim_at(dim, largest) > MAX_DIMENSION:
                    raise InvalidRequest(
                        f"Dimension '{dim}' of tensor '{tensor.name}' is not always a whole number in range.",
                        note=f"It moves in steps of {steps}, divided by {divisor}; the limit is {MAX_DIMENSION}.",
                    )
    for group in (inputs, outputs):
        _refuse_duplicates("tensor", [tensor.name for tensor in group])


@dataclass(frozen=True)
class SessionStep:
    """An ONNX file without operators of edge4d; inputs and outputs are names inside the graph."""

    onnx: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OperatorStep:
    """One call of an edge4d operator, with every attribute written out."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


Step = Union[SessionStep, OperatorStep]


@dataclass(frozen=True)
class Graph:
    """One precision of a stage: `whole` for backends with our operators, `steps` for those without."""

    whole: Path
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Stage:
    name: str
    axes: Mapping[str, Axis]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graphs: Mapping[str, Graph]

    def graph(self, precision: str) -> Graph:
        """Raises PrecisionNotInBundle: a precision is never replaced by another one."""
        if precision not in self.graphs:
            raise PrecisionNotInBundle(
                f"Stage '{self.name}' has no {precision} graph.",
                note=f"It has {', '.join(self.graphs)}.",
                hint=f"Use --precision {next(iter(self.graphs))}.",
            )
        return self.graphs[precision]

    def input(self, name: str) -> TensorSpec:
        """Raises InvalidBundle where the stage takes no tensor of this name."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        raise InvalidBundle(
            f"Stage '{self.name}' takes no tensor '{name}'.",
            note=f"It takes {', '.join(tensor.name for tensor in self.inputs)}.",
            hint="Export the bundle again.",
        )


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file was there, and had the bytes that `bundle.json` says, when it was loaded."""

    folder: Path
    system: str
    config: Mapping[str, Any]
    precisions: tuple[str, ...]
    stages: Mapping[str, Stage]
    files: Mapping[str, FileEntry]
    camera: Camera
    licence: str
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, path_or_name: Union[str, Path]) -> Bundle:
        """Reads and verifies a folder, or a bundle that ships with edge4d.

        Args:
            path_or_name: a path (anything with a separator, or that ends in `.e4d`), or a shipped bundle's name.

        Raises:
            InvalidBundle: there is none, or its description or a file is missing, altered, too new or out of bounds.
        """
        folder = _folder(path_or_name)
        try:
            return _bundle_from_json(folder, _read_description(folder))
        except InvalidRequest as error:  # from Axis, TensorSpec and check_stage_tensors, where export is the caller
            raise InvalidBundle(error.what, note=error.note, hint=_rebuild(folder)) from None
        except OSError as error:
            raise InvalidBundle(
                f"Bundle '{folder.name}' cannot be read.", note=str(error), hint=_rebuild(folder)
            ) from error

    @property
    def name(self) -> str:
        return self.folder.stem

    def stage(self, name: str) -> Stage:
        if name not in self.stages:
            raise InvalidBundle(
                f"Bundle '{self.name}' has no stage '{name}'.",
                note=f"It has {', '.join(self.stages)}.",
                hint=f"System '{self.system}' needs it: export the bundle again.",
            )
        return self.stages[name]

    @property
    def inputs(self) -> set[str]:
        """The tensors that stages take, and none makes."""
        stages = self.stages.values()
        return {tensor.name for stage in stages for tensor in stage.inputs} - {
            tensor.name for stage in stages for tensor in stage.outputs
        }

    def leading_to(self, wanted: Iterable[str], given: Collection[str]) -> tuple[list[str], set[str]]:
        """What makes some tensors of others; those of the same name are one.

        Returns:
            The names of the stages that must run, in their order, and the tensors that nothing makes.
        """
        names, missing = [], set(wanted).difference(given)
        for stage in reversed(tuple(self.stages.values())):
            made = {tensor.name for tensor in stage.outputs}
            if made & missing:
                names.append(stage.name)
                missing = (missing - made) | {tensor.name for tensor in stage.inputs}.difference(given)
        return names[::-1], missing


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


def shipped_bundles() -> tuple[str, ...]:
    """The names of the bundles that come with edge4d."""
    shipped = _shipped_folder()
    if not shipped.is_dir():
        return ()
    return tuple(sorted(folder.stem for folder in shipped.iterdir() if folder.suffix == SUFFIX))


def _shipped_folder() -> Path:
    return Path(str(importlib.resources.files("edge4d.runtime"))) / "bundles"


def _folder(path_or_name: Union[str, Path]) -> Path:
    text = str(path_or_name)
    is_path = isinstance(path_or_name, Path) or text.endswith(SUFFIX) or not _NAME.fullmatch(text)
    folder = Path(text) if is_path else _shipped_folder() / f"{text}{SUFFIX}"
    if not _is_folder(folder):
        names = ", ".join(shipped_bundles()) or "none"
        raise InvalidBundle(
            f"There is no bundle '{text}'.",
            note=f"Looked for the folder {folder}." if is_path else f"Bundles that ship with edge4d: {names}.",
            hint="Give a shipped bundle's name, or the path of a folder (./NAME for one in this folder).",
        )
    return folder.resolve()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL
        return False


def _rebuild(folder: Path) -> str:
    return f"Copy or export '{folder.name}' again."


def _refuse(what: str, *, note: str = "", hint: str = "Export the bundle again.") -> NoReturn:
    raise InvalidBundle(what, note=note, hint=hint)


def _refuse_duplicates(kind: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"Two of the {kind}s have the same name.", note=f"Twice: {', '.join(twice)}.")


# ---- bundle.json → objects: every value is checked where it is read -------------------------------------------------


def _read_description(folder: Path) -> dict[str, Any]:
    path = _inside(folder, DESCRIPTION)
    size = path.stat().st_size
    if size > MAX_DESCRIPTION_BYTES:
        _refuse(f"'{DESCRIPTION}' is too large.", note=f"It has {size} bytes, the limit is {MAX_DESCRIPTION_BYTES}.")
    try:
        value = json.loads(
            path.read_bytes().decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8, bad JSON and over-long integers
        _refuse(f"'{DESCRIPTION}' of '{folder.name}' is not the JSON that a bundle has.", note=f"{error}.")
    if type(value) is not dict:
        _refuse(f"'{DESCRIPTION}' of '{folder.name}' is not a JSON object.")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return unique


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def _get(node: Mapping[str, Any], key: str, kind: type[_T], where: str) -> _T:
    if key not in node:
        _refuse(f"{where} has no '{key}' in '{DESCRIPTION}'.")
    value = node[key]
    if type(value) is not kind:  # not isinstance: True is an int
        _refuse(f"'{key}' of {where} must be {_KINDS[kind]}.", note=f"It is {_short(value)}.")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _list_of(kind: type[_T], node: Mapping[str, Any], key: str, where: str) -> list[_T]:
    values = _get(node, key, list, where)
    for value in values:
        if type(value) is not kind:
            _refuse(f"'{key}' of {where} must hold {_KINDS[kind]} only.", note=f"One is {_short(value)}.")
    return values


def _bundle_from_json(folder: Path, node: dict[str, Any]) -> Bundle:
    where = f"bundle '{folder.name}'"
    version = _get(node, "format", int, where)
    if version != FORMAT:
        _refuse(
            f"Bundle '{folder.name}' has a format that this edge4d cannot read.",
            note=f"It is format {version}, this edge4d reads format {FORMAT}.",
            hint="Install the edge4d that wrote it, or export the bundle again with this one.",
        )
    files = {path: _file_entry(entry, path) for path, entry in _get(node, "files", dict, where).items()}
    precisions = tuple(_list_of(str, node, "precisions", where))
    if not precisions or len(set(precisions)) < len(precisions) or not set(precisions) <= set(PRECISIONS):
        _refuse(f"The precisions of {where} cannot be used.", note=f"{precisions}; known: {', '.join(PRECISIONS)}.")
    paths = {path: _verified(folder, path, entry) for path, entry in files.items()}
    stages = [_stage(stage, precisions, paths) for stage in _list_of(dict, node, "stages", where)]
    _refuse_duplicates("stage", [stage.name for stage in stages])
    for onnx in sorted({onnx for stage in stages for graph in stage.graphs.values() for onnx in _onnx_files(graph)}):
        _check_external_data(onnx, set(paths.values()))
    return Bundle(
        folder=folder,
        system=_get(node, "system", str, where),
        config=_get(node, "config", dict, where),
        precisions=precisions,
        stages={stage.name: stage for stage in stages},
        files=files,
        camera=_camera(_get(node, "camera", dict, where)),
        licence=_get(node, "licence", str, where),
        provenance=_get(node, "provenance", dict, where),
    )


def _camera(node: dict[str, Any]) -> Camera:
    width, height = (_get(node, key, int, "the camera") for key in ("width", "height"))
    values = _get(node, "intrinsics", list, "the camera")
    if len(values) != 4 or any(type(value) not in (int, float) for value in values):
        _refuse("The default camera's intrinsics must be four numbers.", note=f"They are {_short(values)}.")
    try:
        return Camera.from_intrinsics(width, height, *map(float, values))
    except (InvalidCamera, OverflowError) as error:
        _refuse("The default camera cannot be used.", note=str(error).splitlines()[0])


def _stage(node: dict[str, Any], precisions: tuple[str, ...], paths: Mapping[str, Path]) -> Stage:
    name = _get(node, "name", str, "a stage")
    if not _NAME.fullmatch(name):
        _refuse(f"A stage cannot be named {_short(name)}.")
    where = f"stage '{name}'"
    axes = {key: _axis(key, _get(node["axes"], key, dict, where)) for key in _get(node, "axes", dict, where)}
    inputs = tuple(_tensor(tensor, where) for tensor in _list_of(dict, node, "inputs", where))
    outputs = tuple(_tensor(tensor, where) for tensor in _list_of(dict, node, "outputs", where))
    check_stage_tensors(axes, inputs, outputs)
    graphs = _get(node, "graphs", dict, where)
    if set(graphs) != set(precisions):
        _refuse(f"The graphs of {where} are not the bundle's precisions.", note=f"{sorted(graphs)}, {precisions}.")
    names = {tensor.name for tensor in inputs}, {tensor.name for tensor in outputs}
    return Stage(
        name=name,
        axes=axes,
        inputs=inputs,
        outputs=outputs,
        graphs={
            precision: _graph(_get(graphs, precision, dict, where), *names, paths, where) for precision in precisions
        },
    )


def _axis(name: str, node: dict[str, Any]) -> Axis:
    low, opt, high, multiple = (_get(node, key, int, f"axis {name}") for key in ("min", "opt", "max", "multiple_of"))
    return Axis(name, low, opt, high, multiple)


def _tensor(node: dict[str, Any], where: str) -> TensorSpec:
    name = _get(node, "name", str, f"a tensor of {where}")
    shape = _get(node, "shape", list, f"tensor '{name}'")
    if any(type(dim) not in (int, str) for dim in shape) or len(shape) > 8:
        _refuse(f"The shape of tensor '{name}' cannot be used.", note=f"It is {_short(shape)}.")
    return TensorSpec(name, _get(node, "dtype", str, f"tensor '{name}'"), tuple(shape))


def _graph(node: dict[str, Any], inputs: set[str], outputs: set[str], paths: Mapping[str, Path], where: str) -> Graph:
    whole = _path_of(_get(node, "whole", str, where), paths)
    steps = tuple(_step(step, paths, where) for step in _list_of(dict, node, "steps", where))
    known = set(inputs)
    for step in steps:
        missing = set(step.inputs) - known
        again = known & set(step.outputs)
        if missing or again or len(set(step.outputs)) < len(step.outputs):
            _refuse(
                f"The steps of {where} do not follow from each other.",
                note=f"A step needs {sorted(missing)} before they exist, or makes {sorted(again)} again.",
            )
        known |= set(step.outputs)
    if not outputs <= known:
        _refuse(f"The steps of {where} do not make all of its outputs.", note=f"Missing: {sorted(outputs - known)}.")
    return Graph(whole, steps)


def _path_of(path: str, paths: Mapping[str, Path]) -> Path:
    if path not in paths:
        _refuse(f"File {_short(path)} is used, but not listed in 'files'.")
    return paths[path]


def _step(node: dict[str, Any], paths: Mapping[str, Path], where: str) -> Step:
    inputs = tuple(_list_of(str, node, "inputs", f"a step of {where}"))
    outputs = tuple(_list_of(str, node, "outputs", f"a step of {where}"))
    if "onnx" in node:
        return SessionStep(_path_of(_get(node, "onnx", str, where), paths), inputs, outputs)
    name = _get(node, "operator", str, f"a step of {where}")
    if name not in OPERATORS:
        _refuse(f"There is no operator {_short(name)}.", note=f"{where} uses it; known: {', '.join(OPERATORS)}.")
    attributes = _get(node, "attributes", dict, f"a step of {where}")
    _check_call(OPERATORS[name], inputs, outputs, attributes, where)
    return OperatorStep(name, inputs, outputs, attributes)


def _check_call(
    operator: Operator, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: dict[str, Any], where: str
) -> None:
    if len(inputs) != len(operator.inputs) or len(outputs) != len(operator.outputs):
        _refuse(f"{operator.name} of {where} has the wrong number of tensors.", note=f"{inputs} to {outputs}.")
    types = {attribute.name: attribute.type for attribute in operator.attributes}
    given = {name: type(value) for name, value in attributes.items()}
    if given != types:
        _refuse(f"{operator.name} of {where} has wrong attributes.", note=f"{_short(given)}, expected {types}.")


# ---- files ----------------------------------------------------------------------------------------------------------


def _file_entry(node: object, path: str) -> FileEntry:
    if type(node) is not dict:
        _refuse(f"The entry of file {_short(path)} must be an object.")
    return FileEntry(_get(node, "bytes", int, f"file '{path}'"), _get(node, "sha256", str, f"file '{path}'"))


def _inside(folder: Path, path: str) -> Path:
    """The regular file at a relative path; never one outside `folder`, through `..` or through a symbolic link."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or {"..", "."} & set(path.split("/")) or re.search(r"[\0\\:]", path):
        _refuse(f"File {_short(path)} is not a plain relative path.", hint="Paths may not leave the bundle's folder.")
    found = folder.joinpath(*parts)
    if not found.exists():
        _refuse(f"File {_short(path)} of bundle '{folder.name}' is missing.", hint=_rebuild(folder))
    resolved = found.resolve()
    if folder != resolved and folder not in resolved.parents:
        _refuse(
            f"File {_short(path)} of bundle '{folder.name}' is a link to another place.",
            note=f"It leads to {resolved}.",
            hint="Replace the link by the file.",
        )
    if not stat.S_ISREG(resolved.stat().st_mode):
        _refuse(f"'{path}' of bundle '{folder.name}' is not a file.", hint=_rebuild(folder))
    return resolved


def _verified(folder: Path, path: str, entry: FileEntry) -> Path:
    found = _inside(folder, path)
    size = found.stat().st_size
    if size != entry.bytes:
        _refuse(
            f"File '{path}' of bundle '{folder.name}' has another size than it was written with.",
            note=f"It has {size} bytes, '{DESCRIPTION}' says {_short(entry.bytes)}.",
            hint=_rebuild(folder),
        )
    digest = sha256_of(found)
    if digest != entry.sha256:
        _refuse(
            f"File '{path}' of bundle '{folder.name}' was altered.",
            note=f"Its SHA-256 is {digest}, '{DESCRIPTION}' says {_short(entry.sha256)}.",
            hint=_rebuild(folder),
        )
    return found


def _onnx_files(graph: Graph) -> set[Path]:
    return {graph.whole, *(step.onnx for step in graph.steps if isinstance(step, SessionStep))}


def _check_external_data(onnx: Path, files: set[Path]) -> None:
    """ONNX Runtime opens what an ONNX file names, wherever that is: it may name verified files only."""
    try:
        locations = external_locations(onnx)
    except ValueError as error:
        _refuse(f"'{onnx.name}' is not an ONNX file.", note=f"{error}.")
    for location in sorted(locations):
        if onnx.parent / location not in files:
            _refuse(f"'{onnx.name}' reads the file {_short(location)}, which is not listed in 'files'.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterator[bytes]:
    while True:
        block: Optional[bytes] = file.read(1 << 20)
        if not block:
            return
        yield block
