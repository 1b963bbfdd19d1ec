"""The paper's network: its size, its outputs, what they depend on, and its export."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx
import pytest

torch = pytest.importorskip("torch")

from edge4d.export.bundle_from_model import bundle_from_model  # noqa: E402
from edge4d.export.models.layers.dinov2 import DinoV2, DinoV2Config  # noqa: E402
from edge4d.export.models.pixel_to_4d import gaussians  # noqa: E402
from edge4d.export.models.pixel_to_4d.paper import Paper, PaperConfig, PaperCore  # noqa: E402
from edge4d.runtime.camera import Camera  # noqa: E402

TINY = PaperConfig(
    layers=3,
    noise_channels=4,
    features=12,
    width=4,
    blocks=(1, 1, 1, 1),
    static_widths=(4, 4, 4, 8, 8),
    dynamic_widths=(4, 4, 4, 4, 8),
    posterior_widths=(4, 4, 4, 8),
)
TEACHER = DinoV2Config(dim=12, depth=1, heads=2, registers=2, patch=4, trained_grid=4)
H, W = 64, 96


def inputs(batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    instances = torch.zeros(batch, H, W, dtype=torch.int32)
    instances[:, 20:40, 30:50] = 3
    return [
        torch.rand(batch, 3, H, W, generator=generator),
        2 + 10 * torch.rand(batch, 1, H, W, generator=generator),
        instances,
        torch.randn(batch, 12, 5, 7, generator=generator),
        torch.randn(batch, 4, H // 16, W // 16, generator=generator),
        torch.tensor([[80.0, 80.0, 48.0, 32.0]]).expand(batch, 4),
    ]


def tiny(config: PaperConfig = TINY, *, moving: bool = False) -> PaperCore:
    torch.manual_seed(0)
    core = PaperCore(config).eval()
    if moving:
        torch.nn.init.normal_(core.dec_d.head.weight, std=0.1)
    return core


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return kernel * kernel * inputs * outputs + outputs


def test_the_papers_configuration_has_forty_million_weights():
    with torch.device("meta"):
        core = PaperCore(PaperConfig())
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in core.named_children()}
    resnet = 25_557_032 - 2_049_000 + 7 * 7 * 64  # torchvision's without its classifier, with a fourth input
    assert counts["enc_s"] == resnet + conv(1024, 2048, 1)
    static = conv(2048, 256) + conv(256 + 1024, 256) + conv(256, 128) + conv(128 + 512, 128)
    static += conv(128, 64) + conv(64 + 256, 64) + conv(64, 32) + conv(32 + 64, 32) + 2 * conv(32, 32)
    assert counts["dec_s"] == static + conv(32, 74, 1)
    assert counts["dec_vae"] == conv(16, 256) + 2 * conv(256, 256) + 3 * 2 * 256
    assert counts["dec_d"] == conv(256, 256) + conv(256, 128) + conv(128, 64) + conv(64, 32) + conv(32, 32) + conv(
        32, 60
    )
    assert counts["lift"] == 0
    assert sum(counts.values()) - counts["enc_vae"] == pytest.approx(40e6, rel=0.1)


def test_outputs_have_the_stages_shapes_and_start_static():
    core, (image, depth, instances, features, noise, intrinsics) = tiny(), inputs(2)
    maps = core(image, depth, features, noise)
    assert [tuple(tensor.shape) for tensor in maps] == [(2, 3 * 14 + 2, H, W), (2, 3 * 12, H, W)]
    scene = gaussians.SceneLift(core.lift)(*maps, depth, instances, intrinsics)
    assert [tensor.name for tensor in gaussians.scene_tensors(3, 64)] == list(scene._fields)
    N = 3 * H * W
    assert scene.means.shape == (2, N, 3)
    assert scene.quats.shape == (2, N, 4)
    assert scene.opacities.shape == (2, N)
    assert scene.groups.shape == (2, N)
    assert scene.groups.dtype == torch.int32
    for motion in (scene.linear, scene.angular):
        assert (motion == 0).all()
        assert motion.shape == (2, 64, 2, 3)
    assert (scene.centres[:, 3] != 0).all()


def test_it_starts_near_the_given_depth_with_small_gaussians():
    image, depth, *rest = inputs()
    scene = tiny().scene(image, depth, *rest)
    first = scene.means[0, : H * W, 2].reshape(H, W)
    # The offset's head has gain 0.2; increments between layers are near exp(-0.1).
    assert (first - depth[0, 0]).abs().mean() < 0.3
    step = (scene.means[0, H * W : 2 * H * W, 2].reshape(H, W) - first).mean().item()
    assert step == pytest.approx(math.exp(-0.1), abs=0.3)
    assert scene.scales.median().item() == pytest.approx(2e-4, rel=0.5)


def test_noise_changes_motion_only():
    core, (*given, noise, intrinsics) = tiny(moving=True), inputs()
    first, second = (core.scene(*given, drawn, intrinsics) for drawn in (noise, -noise))
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.colors, second.colors)
    assert (first.velocity[0, 3] != second.velocity[0, 3]).all()
    assert (first.velocity[0, torch.arange(64) != 3] == 0).all()


def test_dino_features_reach_gaussians_and_motion():
    core, (image, depth, instances, features, *rest) = tiny(moving=True), inputs()
    first = core.scene(image, depth, instances, features, *rest)
    second = core.scene(image, depth, instances, features + 1, *rest)
    assert not torch.equal(first.colors, second.colors)
    assert not torch.equal(first.velocity, second.velocity)


@pytest.mark.parametrize("skips", [0, 2, 4])
def test_any_number_of_skips_decodes(skips):
    core = tiny(replace(TINY, skips=skips))
    assert core.scene(*inputs()).means.shape == (1, 3 * H * W, 3)
    widths = [block[0].in_channels for block in core.dec_s.after]
    without = [8, 8, 4, 4, 4]
    assert sum(width > plain for width, plain in zip(widths, without)) == skips


def test_every_weight_learns():
    core = tiny(moving=True).train()
    image, depth, *rest = inputs(2)
    scene = core.scene(image, depth, *rest)
    mean, log_variance = core.enc_vae(image, image.flip(-1), depth)
    assert mean.shape == log_variance.shape == (2, 4, H // 16, W // 16)
    loss = sum((value * torch.randn_like(value)).sum() for value in scene if value.is_floating_point())
    (loss + (mean * log_variance).sum()).backward()
    without = [name for name, value in core.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert without == []
    assert (core.dec_vae[0][0].weight.grad != 0).any()


def test_it_becomes_a_bundle_for_any_size_in_both_precisions(tmp_path):
    torch.manual_seed(0)
    model = Paper(TINY, DinoV2(12, 20, TEACHER)).eval()
    torch.nn.init.normal_(model.core.dec_d.head.weight, std=0.1)
    bundle = bundle_from_model(
        model,
        tmp_path / "paper.e4d",
        system="pixel_to_4d",
        config={"layers": 3},
        camera=Camera.from_fov(W, H, 60.0),
        licence="Apache-2.0",
        provenance={},
    )
    assert list(bundle.stages) == ["dino", "core", "lift"]
    slow_or_unknown = {"ScatterElements", "ScatterND", "CumSum", "TopK", "NonZero", "Loop", "If"}
    for stage in (bundle.stage("core"), bundle.stage("lift")):
        assert not slow_or_unknown & {node.op_type for node in onnx.load(stage.graph("fp32").whole).graph.node}
    lift = bundle.stage("lift")
    assert [tensor.name for tensor in lift.outputs] == list(gaussians.SceneTensors._fields)
    assert lift.outputs[0].shape_at({"H": 64, "W": 96}) == (1, 3 * 64 * 96, 3)
    kinds = {tensor.data_type for tensor in onnx.load(lift.graph("fp16").whole).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds
