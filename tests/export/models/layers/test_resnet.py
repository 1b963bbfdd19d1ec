"""The ResNet encoder: names, shapes, numbers of weights, and loading of a classifier's weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edge4d.export.models.layers.resnet import ResNetEncoder  # noqa: E402
from edge4d.runtime.errors import InvalidCheckpoint  # noqa: E402

TINY = {"width": 4, "blocks": (1, 2, 1, 1)}


def test_resnet50_has_torchvisions_weights():
    with torch.device("meta"):
        encoder = ResNetEncoder()
    # torchvision's resnet50 has 25,557,032 parameters, 2,048 · 1,000 + 1,000 of them in the classifier.
    assert sum(value.numel() for value in encoder.parameters()) == 25_557_032 - 2_049_000
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert len(shapes) == 318  # 53 convolutions and as many batch norms of five entries
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.num_batches_tracked"] == ()
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.running_var"] == (256,)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.2.bn3.bias"] == (2048,)
    assert encoder.channels == (64, 256, 512, 1024, 2048)


def test_features_halve_from_stride_2_to_32():
    encoder = ResNetEncoder(5, **TINY).eval()
    features = encoder(torch.randn(2, 5, 64, 96))
    assert [tuple(value.shape) for value in features] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(encoder.channels, (2, 4, 8, 16, 32))
    ]


def test_a_classifiers_weights_load_and_further_inputs_start_at_zero():
    source = ResNetEncoder(3, **TINY).eval()
    weights = source.state_dict() | {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    encoder = ResNetEncoder(4, **TINY).eval()
    encoder.load_imagenet(weights)
    image = torch.randn(1, 3, 32, 32)
    for value, expected in zip(encoder(torch.cat([image, torch.randn(1, 1, 32, 32)], 1)), source(image)):
        torch.testing.assert_close(value, expected)


def test_other_weights_are_refused_by_name():
    with pytest.raises(InvalidCheckpoint, match=r"layer4\.0\.conv1"):
        ResNetEncoder(3, **TINY).load_imagenet(ResNetEncoder(3, width=8, blocks=(1, 1, 1, 1)).state_dict())
