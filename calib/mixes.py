"""Mixes of int8 and float: which layers of a bundle compute in int8, as graphs that can be run.

A layer's id is STAGE/NAME, the name being that of its node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from edge4d.calib.layers import Layer, Wiring
from edge4d.calib.quantize import LayerWeights, Scales, Smoothing, Weights, cpu_graph, engine_graph, scale_of
from edge4d.calib.ranges import Seen, Watched
from edge4d.calib.smooth import smoothed_largest, smoothing
from edge4d.runtime.bundle import Bundle, FileEntry, Graph, SessionStep, Stage, Step
from edge4d.runtime.errors import InvalidCalibration

ENGINE = "engine"
"""The name of a variant, next to "int8", whose steps are the graph that TensorRT gets: it shows what that computes."""


def layer_id(stage: str, layer: Layer) -> str:
    return f"{stage}/{layer.name}"


@dataclass(frozen=True)
class Part:
    """A session step of a stage: its fp32 graph without the weights, and the layers in it that can compute in int8."""

    step: SessionStep
    model: Any
    wiring: Wiring
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Floating:
    """A stage as it is in the bundle: what of it could be int8."""

    stage: Stage
    parts: tuple[Part, ...]
    whole: Any  # the fp16 graph without the weights
    weights: Weights

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for part in self.parts for layer in part.layers)

    def watched(self) -> Watched:
        """What ranges are needed of. Tensors behind resizing and pooling have those of what they are made of."""
        tensors = {
            part.step.onnx: tuple(sorted({part.wiring.source(name) for name in part.wiring.tensors(part.layers)}))
            for part in self.parts
        }
        products = frozenset(layer.input for layer in self.layers if layer.kind != "Conv")
        return Watched(tensors, products)


def read_stages(bundle: Bundle) -> dict[str, Floating]:
    """The stages that have something to quantize.

    Raises:
        PrecisionNotInBundle: fp32 or fp16 is missing.
        InvalidCalibration: no stage has.
    """
    found = {name: _read(stage) for name, stage in bundle.stages.items()}
    stages = {name: stage for name, stage in found.items() if stage.layers}
    if not stages:
        raise InvalidCalibration(
            f"Nothing of '{bundle.name}' can compute in int8.",
            note="No stage has a convolution or matrix product with constant weights that another one follows.",
        )
    return stages


def _read(stage: Stage) -> Floating:
    import onnx

    whole = onnx.load(stage.graph("fp16").whole, load_external_data=False)
    in_half = _layers_in_half(whole)
    parts, weights = [], {}
    for step in stage.graph("fp32").steps:
        if isinstance(step, SessionStep):
            model = onnx.load(step.onnx, load_external_data=False)
            wiring = Wiring(model)
            layers = tuple(layer for layer in wiring.layers() if layer.name in in_half)
            parts.append(Part(step, model, wiring, layers))
            weights.update(_weights(step.onnx, wiring, layers))
    return Floating(stage, tuple(parts), whole, weights)


def _layers_in_half(model: Any) -> set[str]:
    """The nodes that have float16 weights: the others are kept in float32 on purpose."""
    from onnx import TensorProto

    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    return {node.name for node in model.graph.node if len(node.input) > 1 and node.input[1] in half}


def _weights(path: Path, wiring: Wiring, layers: Iterable[Layer]) -> dict[str, LayerWeights]:
    import onnx

    constants = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}

    def array(name: str) -> Optional[NDArray[np.float32]]:
        stored = constants.get(wiring.stored_weight(name))
        return None if stored is None else onnx.numpy_helper.to_array(stored).astype(np.float32)

    found = {}
    for layer in layers:
        weight = array(layer.weight)
        assert weight is not None
        found[layer.name] = LayerWeights(weight, array(layer.bias))
    return found


# ---- with ranges -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrated:
    """A stage with the scales of its tensors, ready to become int8 graphs.

    Attributes:
        dead: layers that take nothing but zeros, which have no scale.
    """

    floating: Floating
    scales: Scales
    smoothing: Smoothing
    dead: tuple[Layer, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those that can compute in int8."""
        return tuple(layer for layer in self.floating.layers if layer not in self.dead)


def calibrated(floating: Floating, seen: Seen, smooth: Optional[float]) -> Calibrated:
    """Scales from ranges.

    Args:
        smooth: SmoothQuant's alpha for matrix products; None for none.
    """
    scales: dict[str, float] = {}
    for part in floating.parts:
        for name in part.wiring.tensors(part.layers):
            scales[name] = scale_of(seen.ranges[part.wiring.source(name)].largest)
    dead = tuple(layer for layer in floating.layers if not scales[layer.input])
    factors: dict[str, NDArray[np.float32]] = {}
    for layer in floating.layers:
        if smooth is not None and layer.kind != "Conv" and layer not in dead:
            factors[layer.name] = smoothing(seen.channels[layer.input], floating.weights[layer.name].weight, smooth)
            scales[layer.name] = scale_of(smoothed_largest(seen.channels[layer.input], factors[layer.name]))
    # What is zero in all photographs stays zero with any scale; 1 is one that can be divided by.
    return Calibrated(floating, {name: scale or 1.0 for name, scale in scales.items()}, factors, dead)


class Mixes:
    """Variants of a bundle with some layers in int8. Graphs are written beside a copy of the bundle's weights.

    Args:
        folder: where that copy is.
    """

    def __init__(self, bundle: Bundle, stages: Mapping[str, Calibrated], folder: Path) -> None:
        self.bundle, self.stages, self.folder = bundle, dict(stages), folder
        self._files = dict(bundle.files)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all layers that can compute in int8."""
        return tuple(layer_id(name, layer) for name, stage in self.stages.items() for layer in stage.layers)

    def bundle_with(
        self, chosen: Collection[str], in_engine: Optional[Collection[str]] = None, stem: str = "trial"
    ) -> Bundle:
        """The bundle with the variants "int8" and `ENGINE`, in which the layers `chosen` are int8.

        Graphs of an earlier call with the same stem are overwritten.

        Args:
            in_engine: the layers that are int8 in TensorRT's graphs; the same ones without it.
        """
        stages = {}
        for name, stage in self.bundle.stages.items():
            whole = self._engine(name, stage, chosen if in_engine is None else in_engine, stem)
            steps = self._steps(name, stage, chosen, stem)
            stages[name] = replace(stage, graphs={**stage.graphs, "int8": Graph(whole, steps)})
        precisions = (*(name for name in self.bundle.precisions if name != "int8"), "int8")
        return with_engine_variant(replace(self.bundle, precisions=precisions, stages=stages, files=dict(self._files)))

    def _engine(self, name: str, stage: Stage, chosen: Collection[str], stem: str) -> Path:
        """TensorRT's graph; the fp16 one where no layer is chosen."""
        layers = self._chosen(name, chosen)
        if not layers:
            return stage.graph("fp16").whole
        floating, scales, smooth = self._parts(name)
        graph = engine_graph(floating.whole, layers, scales, floating.weights, smooth)
        return self._write(f"{name}.{stem}.engine.onnx", graph)

    def _steps(self, name: str, stage: Stage, chosen: Collection[str], stem: str) -> tuple[Step, ...]:
        """ONNX Runtime's graphs; the fp32 ones where no layer is chosen."""
        steps = list(stage.graph("fp32").steps)
        layers = self._chosen(name, chosen)
        for part in self.stages[name].floating.parts if layers else ():
            inside = [layer for layer in part.layers if layer in layers]
            if inside:
                floating, scales, smooth = self._parts(name)
                graph = cpu_graph(part.model, inside, scales, floating.weights, smooth)
                index = steps.index(part.step)
                number = f".{index}" if len(steps) > 1 else ""
                steps[index] = replace(part.step, onnx=self._write(f"{name}.{stem}{number}.onnx", graph))
        return tuple(steps)

    def _parts(self, name: str) -> tuple[Floating, Scales, Smoothing]:
        calibrated = self.stages[name]
        return calibrated.floating, calibrated.scales, calibrated.smoothing

    def _chosen(self, name: str, chosen: Collection[str]) -> list[Layer]:
        layers = self.stages[name].layers if name in self.stages else ()
        return [layer for layer in layers if layer_id(name, layer) in chosen]

    def _write(self, name: str, model: Any) -> Path:
        path, content = self.folder / name, model.SerializeToString(deterministic=True)
        path.write_bytes(content)
        self._files[name] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
        return path


def with_engine_variant(bundle: Bundle) -> Bundle:
    """A bundle whose int8 variant can also be run, as `ENGINE`, the way TensorRT gets it.

    A stage with operators of ours is the one that ONNX Runtime gets in both: only TensorRT runs it whole.
    """
    stages = {}
    for name, stage in bundle.stages.items():
        graph = stage.graph("int8")
        step = graph.steps[0]
        if len(graph.steps) == 1 and isinstance(step, SessionStep):
            graph = Graph(graph.whole, (replace(step, onnx=graph.whole),))
        stages[name] = replace(stage, graphs={**stage.graphs, ENGINE: graph})
    return replace(bundle, stages=stages)
