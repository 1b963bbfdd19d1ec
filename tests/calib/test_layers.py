"""Which layers of a graph can be int8, and what lies between them."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from edge4d.calib.layers import Wiring  # noqa: E402


def model(nodes: str, weights: dict[str, tuple[int, ...]], outputs: str = "y") -> Wiring:
    """A graph of x; nodes such as "a:Conv x w -> t", one per line."""
    made = []
    for line in filter(None, map(str.strip, nodes.splitlines())):
        name, _, rest = line.partition(":")
        kind, *inputs = rest.partition("->")[0].split()
        made.append(onnx.helper.make_node(kind, inputs, rest.partition("->")[2].split(), name=name))
    tensors = [onnx.numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in weights.items()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        made,
        "g",
        [value("x", 1, None)],
        [value(name, 1, None) for name in outputs.split()],
        tensors,
    )
    return Wiring(onnx.helper.make_model(graph))


KERNELS = dict.fromkeys(("w1", "w2", "w3", "w4"), (4, 4, 3, 3))


def names(wiring: Wiring) -> list[str]:
    return [layer.name for layer in wiring.layers()]


def test_heads_stay_float():
    wiring = model("a:Conv x w1 -> t\nb:Conv t w2 -> u\nhead:Conv u w3 -> y\nother:Conv t w4 -> z", KERNELS, "y z")
    assert names(wiring) == ["a", "b"]


def test_weights_may_be_casts_of_what_is_stored():
    wiring = model("c:Cast w1 -> w\na:Conv x w -> t\nb:Conv t w2 -> y", KERNELS)
    (layer,) = wiring.layers()
    assert (layer.weight, wiring.stored_weight(layer.weight)) == ("w", "w1")


def test_products_of_two_computed_matrices_are_none():
    wiring = model("a:MatMul x w -> t\nb:MatMul t x -> u\nc:MatMul u w -> v\nd:MatMul v w -> y", {"w": (4, 6)})
    layers = wiring.layers()
    assert [layer.name for layer in layers] == ["a", "c"]
    assert (layers[0].channel_axis, layers[0].weights) == (1, 24)


def test_a_layer_gives_what_is_behind_its_relu():
    wiring = model("a:Conv x w1 -> t\nr:Relu t -> u\nb:Conv u w2 -> v\ns:Relu v -> p\nh:Conv p w3 -> y", KERNELS)
    assert [layer.output for layer in wiring.layers()] == ["u", "p"]


def test_a_relu_that_is_not_the_only_reader_is_apart():
    wiring = model("a:Conv x w1 -> t\nr:Relu t -> u\ns:Add u t -> v\nb:Conv v w2 -> y", KERNELS)
    assert [layer.output for layer in wiring.layers()] == ["t"]


RESIDUAL = """
a:Conv x w1 -> t
r:Relu t -> u
b:Conv u w2 -> v
s:Add x v -> p
q:Relu p -> z
m:MaxPool z -> small
up:Resize small -> big
j:Concat big u -> both
c:Conv both w3 -> w
h:Conv w w4 -> y
"""


def test_tensors_between_the_layers():
    wiring = model(RESIDUAL, KERNELS)
    layers = wiring.layers()
    assert [layer.name for layer in layers] == ["a", "b", "c"]
    assert wiring.tensors(layers) == {"x", "u", "v", "z", "small", "big", "both", "w"}
    # Without c nothing asks for 8 bits behind the first block, and without b nothing inside it.
    assert wiring.tensors(layers[:1]) == {"x", "u"}
    assert wiring.tensors(layers[:2]) == {"x", "u", "v"}


def test_resizing_keeps_the_values_of_its_source():
    wiring = model(RESIDUAL, KERNELS)
    assert wiring.source("big") == "z"
    assert wiring.source("both") == "both"


def test_only_what_relus_give_is_never_negative():
    wiring = model(RESIDUAL, KERNELS)
    assert [name for name in ("x", "u", "v", "z", "big", "both", "w") if wiring.is_never_negative(name)] == [
        *("u", "z", "big", "both")
    ]


def test_what_is_added_to_a_convolution():
    wiring = model(RESIDUAL, KERNELS)
    assert wiring.residuals(wiring.layers()) == {"s": "x"}
    assert wiring.residuals(wiring.layers()[:1]) == {}
