"""Operations of layers, against the multiplications counted one by one, and what a layer computes in."""

from __future__ import annotations

import pytest

from edge4d.runtime.layers import TensorType, dtype, flops


def tensors(*shapes: tuple[int, ...]) -> tuple[TensorType, ...]:
    return tuple(TensorType("", "float32", shape) for shape in shapes)


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "expected"),
    [
        # 1x1 over 4x5 pixels, 3 channels to 2, and 3x3 in two groups of 4 channels each
        ("Conv", [(1, 3, 4, 5), (2, 3, 1, 1)], (1, 2, 4, 5), 2 * 20 * 3 * 2),
        ("Conv", [(1, 8, 6, 6), (8, 4, 3, 3), (8,)], (1, 8, 4, 4), 2 * 8 * 16 * 4 * 9),
        ("FusedConv", [(1, 3, 4, 5), (2, 3, 1, 1)], (1, 2, 4, 5), 2 * 20 * 3 * 2),
        # 2x2 without overlap: each of 3x3 inputs in 5 channels spreads over 4 outputs in 7
        ("ConvTranspose", [(1, 5, 3, 3), (5, 7, 2, 2)], (1, 7, 6, 6), 2 * 9 * 5 * 7 * 4),
        ("MatMul", [(2, 3, 4), (4, 5)], (2, 3, 5), 2 * 2 * 3 * 4 * 5),
        ("MatMul", [(4,), (4,)], (), 2 * 4),
        ("Gemm", [(3, 4), (4, 5), (5,)], (3, 5), 2 * 3 * 4 * 5),
        ("Gemm", [(4, 3), (5, 4)], (3, 5), 2 * 3 * 4 * 5),
        ("Gemm", [(0, 4), (4, 5)], (0, 5), 0),
        ("Relu", [(3, 4)], (3, 4), 0),
        # weights that a backend does not tell: a product can do without, a convolution cannot
        ("MatMul", [(2, 3, 4)], (2, 3, 5), 2 * 2 * 3 * 4 * 5),
        ("Gemm", [(3, 4), (5,)], (3, 5), 2 * 3 * 4 * 5),
        ("Conv", [(1, 3, 4, 5), (2,)], (1, 2, 4, 5), 0),
        ("Conv", [(1, 3, 4, 5)], (1, 2, 4, 5), 0),
        ("Conv", [], (1, 2, 3), 0),
    ],
)
def test_operations(kind, inputs, output, expected):
    assert flops(kind, tensors(*inputs), tensors(output)) == expected


def test_the_dtype_is_that_of_the_first_output_that_is_computed_in():
    ids, half = TensorType("ids", "int32", (4,)), TensorType("depth", "float16", (1, 4))
    assert dtype([ids, half]) == "float16"
    assert dtype([ids]) == ""
    assert [str(ids), str(TensorType("", "float32", ()))] == ["ids int32[4]", "float32[]"]
