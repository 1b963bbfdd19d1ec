"""What of a graph can compute in int8: convolutions and matrix products with constant weights, and what lies between.

Only the structure of a graph is looked at here. Weights are initialisers, or casts of initialisers, which is what a
bundle's fp32 graphs have for weights that they share with the fp16 ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

_MATRIX_PRODUCTS = ("MatMul", "Gemm")
_MOVES = ("MaxPool", "Resize")  # give back values that they took, or means of them: int8 in, the same int8 out
_JOINS = ("Add", "Concat")  # have int8 kernels of their own

Node = Any  # onnx.NodeProto: onnx is imported where it is used


class Layer(NamedTuple):
    """A convolution or matrix product.

    Attributes:
        name: of its node, the same one in all of a stage's graphs.
        kind: "Conv", "MatMul" or "Gemm".
        input, weight, bias, output: names of tensors in the fp32 graph; "" for no bias. The output is behind the Relu,
            where only that reads what the layer gives.
        channel_axis: of the weights, where each of the output's channels has a scale of its own.
        weights: how many it has.
    """

    name: str
    kind: str
    input: str
    weight: str
    bias: str
    output: str
    channel_axis: int
    weights: int


class Wiring:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.nodes: list[Node] = list(graph.node)
        self.inputs = {value.name for value in graph.input}
        self.maker: dict[str, Node] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in filter(None, node.input):
                self.readers[name].append(node)
        self._outputs = {value.name for value in graph.output}
        self._dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def layers(self) -> tuple[Layer, ...]:
        """All that can compute in int8, in order, but for heads: what no other layer follows stays as precise as it is,
        for nothing would round its result to 8 bits again but the output itself."""
        found = [layer for layer in map(self._layer, self.nodes) if layer is not None]
        followed = self._followed({layer.name for layer in found})
        return tuple(layer for layer in found if layer.name in followed)

    def _layer(self, node: Node) -> Layer | None:
        if node.op_type not in ("Conv", *_MATRIX_PRODUCTS) or node.domain or len(node.input) < 2:
            return None
        dims = self.dims_of_weight(node.input[1])
        if dims is None or node.input[0] not in self.inputs | set(self.maker):
            return None
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if node.op_type in _MATRIX_PRODUCTS and (len(dims) != 2 or transposed):
            return None
        return Layer(
            name=node.name,
            kind=node.op_type,
            input=node.input[0],
            weight=node.input[1],
            bias=node.input[2] if len(node.input) > 2 else "",
            output=self._behind_relu(node.output[0]),
            channel_axis=0 if node.op_type == "Conv" else 1,
            weights=math.prod(dims),
        )

    def dims_of_weight(self, name: str) -> tuple[int, ...] | None:
        """None for what is no weight."""
        return self._dims.get(self.stored_weight(name))

    def stored_weight(self, name: str) -> str:
        """The initialiser that a weight is, or is cast from."""
        maker = self.maker.get(name)
        return maker.input[0] if maker is not None and maker.op_type == "Cast" else name

    def _behind_relu(self, name: str) -> str:
        readers = self.readers[name]
        only = len(readers) == 1 and readers[0].op_type == "Relu" and name not in self._outputs
        return str(readers[0].output[0]) if only else name

    def _followed(self, names: Collection[str]) -> set[str]:
        """Those of the nodes `names` from which a path leads to another one of them."""
        followed: set[str] = set()
        leads: set[str] = set()  # tensors from which a path leads to one
        for node in reversed(self.nodes):
            if any(name in leads for name in node.output):
                followed.add(node.name)
                leads.update(node.input)
            if node.name in names:
                leads.add(node.input[0])
        return followed & set(names)

    # ---- tensors in int8 ---------------------------------------------------------------------------------------------

    def tensors(self, layers: Iterable[Layer]) -> set[str]:
        """The tensors that are 8 bits wide where ONNX Runtime computes `layers` in int8: what they take, what
        convolutions give, and what passes through additions, concatenations, resizing and pooling on the way."""
        layers = list(layers)
        wanted = {layer.input for layer in layers} | {layer.output for layer in layers if layer.kind == "Conv"}
        for node in reversed(self.nodes):  # a node's readers come before it, so that one pass is enough
            if node.op_type in (*_MOVES, *_JOINS) and self._behind_relu(node.output[0]) in wanted:
                wanted.update(self._values(node))
        return wanted

    def _values(self, node: Node) -> Iterator[str]:
        """What a node takes of what others computed."""
        taken = node.input[:1] if node.op_type in _MOVES else node.input
        return (name for name in taken if name in self.maker or name in self.inputs)

    def source(self, name: str) -> str:
        """The tensor whose values `name` holds: the same behind resizing and pooling, which keep their scale."""
        while name in self.maker and self.maker[name].op_type in _MOVES:
            name = self.maker[name].input[0]
        return name

    def is_never_negative(self, name: str) -> bool:
        """Whether a tensor comes from nothing but Relus."""
        maker = self.maker.get(self.source(name))
        if maker is None or maker.op_type not in ("Relu", "Concat"):
            return False
        return maker.op_type == "Relu" or all(self.is_never_negative(part) for part in self._values(maker))

    def residuals(self, layers: Iterable[Layer]) -> dict[str, str]:
        """What is added to the result of a convolution, by the name of the addition: TensorRT computes both at once
        where what is added is in int8 too."""
        found = {}
        convolutions = {layer.name for layer in layers if layer.kind == "Conv"}
        for node in self.nodes:
            if node.op_type == "Add":
                makers = [self.maker.get(name) for name in node.input]
                convolved = [maker is not None and maker.name in convolutions for maker in makers]
                if convolved.count(True) == 1:
                    found[node.name] = str(node.input[convolved.index(False)])
        return found
