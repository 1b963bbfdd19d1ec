"""An engine runs one stage of a bundle on one backend; the checks of its named tensors are shared by all backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from edge4d.runtime.bundle import Axis, Stage, TensorSpec, dim_at
from edge4d.runtime.errors import EngineFailed, InvalidTensor
from edge4d.runtime.nvtx_ranges import nvtx_range


class Engine(Protocol):
    """One stage, ready to run. The caller owns it and closes it; a closed engine cannot run."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Named arrays in, named arrays out.

        The outputs are the caller's: a later `run` does not touch them. Inputs are only read, and copied where they
        are not contiguous.

        Raises:
            InvalidTensor: a tensor is missing or unknown, or has another dtype or shape than the stage takes.
            EngineFailed: the backend stopped, or the engine is closed.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...


class StageEngine(ABC):
    """The part of an engine that does not depend on the backend: `run` checks, `_run` works."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._stage.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._stage.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        if self._closed:
            raise EngineFailed(f"The engine of stage '{self._stage.name}' is closed.", hint="Make a new one.")
        check_inputs(self._stage, inputs)
        with nvtx_range(self._stage.name):
            return self._run({name: np.ascontiguousarray(array) for name, array in inputs.items()})

    @abstractmethod
    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs on inputs that were checked and are contiguous."""

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> StageEngine:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def check_inputs(stage: Stage, inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The size of every axis, read off the inputs. Raises InvalidTensor where they do not fit the stage."""
    check_names(f"stage '{stage.name}'", inputs, [tensor.name for tensor in stage.inputs])
    for tensor in stage.inputs:
        _check_array(tensor, inputs[tensor.name])
    sizes: dict[str, int] = {}
    for tensor in stage.inputs:
        for dim, size in zip(tensor.shape, inputs[tensor.name].shape):
            if dim in stage.axes:
                _check_size(stage.axes[str(dim)], sizes.setdefault(str(dim), size), tensor, inputs[tensor.name])
    for tensor in stage.inputs:
        _check_shape(tensor, inputs[tensor.name], sizes)
    return sizes


def check_names(where: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Raises InvalidTensor with what is missing, what is extra, and both full sets."""
    has, needs = set(given), set(expected)
    if has != needs:
        raise InvalidTensor(
            f"The inputs of {where} are not the ones it takes.",
            note=f"Missing: {_names(needs - has)}; unknown: {_names(has - needs)}; "
            f"given: {_names(has)}; taken: {_names(needs)}.",
            hint="Give exactly the tensors that it takes, by name.",
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _check_array(tensor: TensorSpec, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(
            f"Tensor '{tensor.name}' is not a NumPy array.",
            note=f"It is a {type(array).__name__}.",
            hint="Convert it with numpy.asarray.",
        )
    if array.dtype != tensor.dtype:
        raise InvalidTensor(
            f"Tensor '{tensor.name}' has the wrong dtype.",
            note=f"It is {array.dtype}, the stage takes {tensor.dtype}.",
            hint=f"Convert it with astype('{tensor.dtype}').",
        )
    if array.ndim != len(tensor.shape):
        raise _wrong_shape(tensor, array, f"Give {len(tensor.shape)} dimensions.")


def _check_size(axis: Axis, size: int, tensor: TensorSpec, array: NDArray[Any]) -> None:
    if not axis.allows(size):
        step = f", in multiples of {axis.multiple_of}" if axis.multiple_of > 1 else ""
        raise _wrong_shape(
            tensor,
            array,
            f"{axis.name} may be {axis.min} to {axis.max}{step}; the nearest to {size} is {axis.nearest(size)}.",
        )


def _check_shape(tensor: TensorSpec, array: NDArray[Any], sizes: Mapping[str, int]) -> None:
    expected = tuple(dim_at(dim, sizes) for dim in tensor.shape)
    if array.shape != expected:
        where = ", ".join(f"{axis} = {sizes[axis]}" for axis in sorted(tensor.axes()))
        raise _wrong_shape(tensor, array, f"Give {list(expected)}" + (f", for {where}." if where else "."))


def _wrong_shape(tensor: TensorSpec, array: NDArray[Any], hint: str) -> InvalidTensor:
    shape = ", ".join(str(dim) for dim in tensor.shape)
    return InvalidTensor(
        f"Tensor '{tensor.name}' has the wrong shape.",
        note=f"It is {list(array.shape)}, the stage takes [{shape}].",
        hint=hint,
    )
