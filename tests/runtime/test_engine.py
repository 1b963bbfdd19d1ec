"""The checks of named tensors that every engine shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge4d.runtime.bundle import Axis, Stage, TensorSpec
from edge4d.runtime.engine import StageEngine, check_inputs
from edge4d.runtime.errors import EngineFailed, InvalidTensor

STAGE = Stage(
    name="core",
    axes={"H": Axis("H", 64, 256, 512, 32), "W": Axis("W", 64, 448, 1024, 32)},
    inputs=(
        TensorSpec("image", "float32", (1, 3, "H", "W")),
        TensorSpec("noise", "float32", (1, 8, "H/16", "W/16")),
        TensorSpec("intrinsics", "float32", (1, 4)),
    ),
    outputs=(TensorSpec("mean", "float32", ()),),
    graphs={},
)


class Mean(StageEngine):
    def _run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert all(array.flags.c_contiguous for array in inputs.values())
        return {"mean": inputs["image"].mean()}


def inputs_at(height: int, width: int) -> dict[str, NDArray[np.float32]]:
    return {
        "image": np.ones((1, 3, height, width), np.float32),
        "noise": np.ones((1, 8, height // 16, width // 16), np.float32),
        "intrinsics": np.ones((1, 4), np.float32),
    }


@given(height=st.integers(2, 16), width=st.integers(2, 32))
def test_every_allowed_size_is_read_off_the_inputs(height: int, width: int) -> None:
    assert check_inputs(STAGE, inputs_at(32 * height, 32 * width)) == {"H": 32 * height, "W": 32 * width}


def test_missing_and_unknown_names_are_all_named() -> None:
    inputs = inputs_at(64, 64)
    inputs["Image"] = inputs.pop("image")
    with pytest.raises(InvalidTensor) as caught:
        check_inputs(STAGE, inputs)
    assert "Missing: image; unknown: Image" in caught.value.note
    assert "given: Image, intrinsics, noise; taken: image, intrinsics, noise" in caught.value.note


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("image", np.ones((1, 3, 64, 64)), r"float64, the stage takes float32"),
        ("image", [1.0], "not a NumPy array"),
        ("image", np.ones((3, 64, 64), np.float32), r"\[3, 64, 64\], the stage takes \[1, 3, H, W\]"),
        ("image", np.ones((1, 3, 100, 64), np.float32), r"64 to 512, in multiples of 32; the nearest to 100 is 96"),
        ("image", np.ones((1, 3, 64, 4096), np.float32), r"the nearest to 4096 is 1024"),
        ("image", np.ones((1, 3, 0, 64), np.float32), r"the nearest to 0 is 64"),
        ("image", np.ones((1, 4, 64, 64), np.float32), r"Give \[1, 3, 64, 64\], for H = 64, W = 64"),
        ("noise", np.ones((1, 8, 4, 5), np.float32), r"Give \[1, 8, 4, 4\], for H = 64, W = 64"),
        ("intrinsics", np.ones((1, 5), np.float32), r"Give \[1, 4\]\."),
    ],
)
def test_wrong_tensors_are_refused_with_both_numbers(name: str, array: Any, message: str) -> None:
    with pytest.raises(InvalidTensor, match=message) as caught:
        check_inputs(STAGE, {**inputs_at(64, 64), name: array})
    assert f"'{name}'" in caught.value.what


def test_run_checks_then_works_on_contiguous_arrays() -> None:
    inputs = inputs_at(64, 96)
    inputs["image"] = np.ones((1, 3, 96, 64), np.float32).transpose(0, 1, 3, 2)
    with Mean(STAGE) as engine:
        assert engine.run(inputs) == {"mean": 1.0}
        with pytest.raises(InvalidTensor):
            engine.run({})


def test_a_closed_engine_says_so() -> None:
    engine = Mean(STAGE)
    engine.close()
    engine.close()
    with pytest.raises(EngineFailed, match="engine of stage 'core' is closed"):
        engine.run(inputs_at(64, 64))
