"""The stages of the canonical generator as graphs, on real tables of voxels, and its official files."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from formulas import every_weight_matters, random  # noqa: E402

from edge4d.export.cut import cut  # noqa: E402
from edge4d.export.models.gvf_diffusion.canonical import CanonicalConfig, CanonicalGenerator  # noqa: E402
from edge4d.export.models.gvf_diffusion.dino import Dino, condition, dino_stage  # noqa: E402
from edge4d.export.models.gvf_diffusion.gaussian_decoder import LATENTS, GaussianDecoderConfig  # noqa: E402
from edge4d.export.models.gvf_diffusion.slat import SlatFlowConfig  # noqa: E402
from edge4d.export.models.gvf_diffusion.structure import StructureDecoderConfig, StructureFlowConfig  # noqa: E402
from edge4d.export.models.layers.dinov2 import IMAGENET_MEAN, IMAGENET_STD, DinoV2, DinoV2Config  # noqa: E402
from edge4d.export.onnx_from_torch import onnx_from_torch, run_onnx  # noqa: E402
from edge4d.export.precision import fp16_from_fp32, rounded_to_half  # noqa: E402
from edge4d.export.stage import ExportStage  # noqa: E402
from edge4d.runtime.voxels import coarse, neighbours, windows  # noqa: E402

TINY = CanonicalConfig(
    structure_flow=StructureFlowConfig(resolution=3, dim=24, depth=1, heads=3, context_dim=24),
    structure_decoder=StructureDecoderConfig(channels=(6, 4, 2), blocks=1),
    slat_flow=SlatFlowConfig(width=8, dim=24, depth=1, heads=3, context_dim=24),
    gaussian_decoder=GaussianDecoderConfig(dim=24, depth=2, heads=3, resolution=16, gaussians=2),
    voxels=(64, 256),
    windows=((8, 27), (20, 64)),
)
TEACHER = DinoV2Config(dim=24, depth=1, heads=3, registers=2, patch=4, trained_grid=3)


def tiny() -> CanonicalGenerator:
    return every_weight_matters(CanonicalGenerator(TINY))


@cache
def teacher() -> DinoV2:
    return every_weight_matters(DinoV2(12, 12, TEACHER))


def stages() -> dict[str, ExportStage]:
    made = [dino_stage(teacher(), (2, 4)), *tiny().stages(condition(teacher()))]
    return {stage.name: stage for stage in made}


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    return {name: onnx_from_torch(stage) for name, stage in stages().items()}


def voxels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.unique(rng.integers(0, 16, (90, 3)), axis=0).astype(np.int32)


def slat_inputs() -> dict[str, np.ndarray]:
    coords = voxels()
    above = coarse(coords, 16)
    return {
        "x": random(len(coords), 8).numpy(),
        "t": np.array([640.0], np.float32),
        "condition": random(1, 12, 24, seed=1).numpy(),
        "neighbours": neighbours(coords, 16),
        "parents": above.parents,
        "children": above.children,
        "coarse_neighbours": neighbours(above.coords, 8),
        "coarse_coords": above.coords,
    }


def decoder_inputs() -> dict[str, np.ndarray]:
    coords = voxels()
    return {
        "samples": random(len(coords), 8).numpy(),
        "coords": coords,
        "windows": windows(coords, 8),
        "shifted_windows": windows(coords, 8, 4),
    }


def test_stages_become_graphs_that_engines_read(graphs):
    assert list(graphs) == ["dino", "ss_flow", "ss_dec", "slat_flow", "gs_dec"]
    for name, model in graphs.items():
        slow_or_unknown = {"ScatterElements", "ScatterND", "GatherND", "TopK", "NonZero", "Loop", "If"}
        assert not slow_or_unknown & {node.op_type for node in model.graph.node}, name


def test_sparse_stages_run_edge4d_operators_on_weights_that_are_ready(graphs):
    expected = {"slat_flow": {"SubmanifoldConvolution": 8, "GatherMean": 1}, "gs_dec": {"WindowAttention": 2}}
    for name, operators in expected.items():
        graph = graphs[name].graph
        assert Counter(node.op_type for node in graph.node if node.domain == "edge4d") == operators
        constants = {tensor.name for tensor in graph.initializer}
        assert not any(node.op_type == "Transpose" and node.input[0] in constants for node in graph.node)
        half = fp16_from_fp32(graphs[name], fp32_scopes=stages()[name].fp32_scopes).graph
        assert {value.type.tensor_type.elem_type for value in half.value_info} == {onnx.TensorProto.FLOAT16}
        steps = cut(graphs[name])
        assert len(steps) == 2 * sum(operators.values()) + 1  # each operator once, a session before, between and after


@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
@pytest.mark.parametrize(("name", "inputs"), [("slat_flow", slat_inputs), ("gs_dec", decoder_inputs)])
def test_sparse_stages_compute_the_same_on_real_tables(graphs, name, inputs, precision, tolerance):
    stage, graph = stages()[name], graphs[name]
    if precision == "fp16":
        graph = rounded_to_half(fp16_from_fp32(graph, fp32_scopes=stage.fp32_scopes))
    found = run_onnx(stage, graph, inputs())
    expected = stage.module(*map(torch.from_numpy, inputs().values()))
    for tensor, value in zip(stage.outputs, expected if isinstance(expected, tuple) else (expected,)):
        np.testing.assert_allclose(found[tensor.name], value, atol=tolerance)


@torch.no_grad()
def test_the_decoder_restores_latents_first():
    stage, model = stages()["gs_dec"], tiny()
    samples, *rest = map(torch.from_numpy, decoder_inputs().values())
    mean, deviation = torch.tensor(LATENTS).T
    for found, expected in zip(stage.module(samples, *rest), model.gaussian_decoder(samples * deviation + mean, *rest)):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_features_are_ordered_for_motion_and_normalised_for_the_canonical():
    pictures = random(2, 3, 12, 12).sigmoid()
    images, normalised = Dino(teacher())(pictures)
    mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    tokens = teacher()((pictures - mean[:, None, None]) / deviation[:, None, None])[1]
    torch.testing.assert_close(images, torch.cat([tokens[:, 3:], tokens[:, :1]], dim=1))
    centred = tokens - tokens.mean(-1, keepdim=True)
    torch.testing.assert_close(normalised, centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def test_the_official_size():
    with torch.device("meta"):
        model, official = CanonicalGenerator(), DinoV2(518, 518)
    stage = dino_stage(official, (24, 32))
    assert [tensor.shape for tensor in stage.outputs] == [("T", 1370, 1024), ("T", 1374, 1024)]
    assert {stage.inputs[2].shape for stage in model.stages(condition(official)) if "flow" in stage.name} == {
        (1, 1374, 1024)
    }
    parameters = [sum(value.numel() for value in network.parameters()) for network in (official, model)]
    assert parameters == [304_372_736, 1_314_757_921]
