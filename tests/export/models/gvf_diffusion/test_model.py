"""The stages of GVFDiffusion as graphs: ONNX Runtime computes what torch computes, in both precisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from formulas import every_weight_matters, random  # noqa: E402

from edge4d.export.models.gvf_diffusion.model import GvfDiffusion, GvfDiffusionConfig  # noqa: E402
from edge4d.export.models.gvf_diffusion.motion_vae import MotionVaeConfig  # noqa: E402
from edge4d.export.models.gvf_diffusion.variation_field import VariationFieldConfig  # noqa: E402
from edge4d.export.onnx_from_torch import onnx_from_torch, run_onnx  # noqa: E402
from edge4d.export.precision import fp16_from_fp32, rounded_to_half  # noqa: E402
from edge4d.runtime.errors import InvalidRequest  # noqa: E402

TINY = GvfDiffusionConfig(
    dit=VariationFieldConfig(dim=48, depth=2, heads=4, image_channels=24),
    vae=MotionVaeConfig(dim=48, depth=2, heads=4),
    latents=12,
    static_points=20,
    image_tokens=9,
    mesh_points=30,
    frames=(3, 6),
    gaussians=(50, 80),
)


def tiny() -> GvfDiffusion:
    model = every_weight_matters(GvfDiffusion(TINY))
    for standardise in (model.static, model.latents):
        standardise.mean.normal_(generator=torch.Generator().manual_seed(1))
        standardise.deviation.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    """Of all stages, in float32; ONNX Runtime has computed what torch computes, or they would not be there."""
    return {stage.name: onnx_from_torch(stage) for stage in tiny().stages()}


def test_stages_become_graphs_that_engines_read(graphs):
    assert list(graphs) == ["dit_cond", "dit_step", "vae_latent", "vae_query", "vae_attend", "vae_encode"]
    for name, model in graphs.items():
        slow_or_unknown = {"ScatterElements", "ScatterND", "TopK", "NonZero", "Loop", "If", "Tile", "Expand"}
        assert not slow_or_unknown & {node.op_type for node in model.graph.node}, name
        assert onnx.TensorProto.DOUBLE not in {tensor.data_type for tensor in model.graph.initializer}, name


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_chain_of_graphs_is_the_plain_form(graphs, precision):
    """One evaluation and one decoding, by ONNX Runtime, against the networks as they are written down."""
    model = tiny()
    stages = {stage.name: stage for stage in model.stages()}

    def run(name, **inputs):
        graph = graphs[name]
        if precision == "fp16":
            graph = rounded_to_half(fp16_from_fp32(graph, fp32_scopes=stages[name].fp32_scopes))
        return run_onnx(stages[name], graph, {key: np.asarray(value) for key, value in inputs.items()})

    T, N, latents = 5, 33, TINY.latents
    images, static = random(T, TINY.image_tokens, 24), random(TINY.static_points, 14, seed=1)
    positions, x, t = 0.3 * random(latents, 3, seed=2), random(T, latents, 16, seed=3), torch.tensor([700.25])
    gaussians = random(N, 14, seed=4)

    v = run("dit_step", x=x, t=t, positions=positions, **run("dit_cond", images=images, static=static))["v"]
    keys_values = run("vae_latent", samples=x)
    queries = run("vae_query", gaussians=gaussians)["queries"]
    frames = ({name: value[i : i + 1] for name, value in keys_values.items()} for i in range(T))
    changes = np.concatenate([run("vae_attend", queries=queries, **frame)["changes"] for frame in frames])

    # Values of order 1; about a hundred roundings one after the other, each of 6e-8 or 5e-4, add up by chance.
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    expected = model.dit(x[None], t, images[None], model.static(static)[None], positions[None])[0]
    np.testing.assert_allclose(v, expected, atol=tolerance)
    expected = model.vae.decode(model.latents.restored(x), gaussians.expand(T, -1, -1))
    np.testing.assert_allclose(changes, expected, atol=tolerance)


def test_positions_may_be_standardised():
    model = GvfDiffusion(replace(TINY, position_norm="static"))
    model.static.mean.copy_(torch.arange(14))
    step = next(stage for stage in model.stages() if stage.name == "dit_step")
    assert step.module.positions.mean.tolist() == [0, 1, 2]
    assert "positions" in step.fp32_scopes


def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(InvalidRequest, match="normalised as 'none'"):
        GvfDiffusionConfig(position_norm="none")
    with pytest.raises(InvalidRequest, match="do not fit together"):
        GvfDiffusionConfig(vae=MotionVaeConfig(latent_channels=8))
