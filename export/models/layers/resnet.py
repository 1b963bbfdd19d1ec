"""ResNet with bottlenecks (He et al. 2016) as an encoder of five scales, with torchvision's names of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edge4d.runtime.errors import InvalidCheckpoint

EXPANSION = 4  # a bottleneck's output is this much wider than its 3×3 convolution


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride, "v1.5"), 1×1 convolution around a skip, which is projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,4·width,H/stride,W/stride]."""
        y: Tensor = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        return y.relu()


class ResNetEncoder(nn.Module):
    """Features at strides 2, 4, 8, 16, 32; ResNet-50 by default.

    Args:
        inputs: channels of the input.
        width: channels at stride 2.
        blocks: bottlenecks at strides 4, 8, 16, 32.

    Attributes:
        channels: of the five outputs; 64, 256, 512, 1024, 2048 by default.
    """

    def __init__(self, inputs: int = 3, *, width: int = 64, blocks: tuple[int, int, int, int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = (width, *(EXPANSION * width * 2**level for level in range(4)))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(self.channels[level], width * 2**level, blocks[level], stride=1 if level == 0 else 2)
            for level in range(4)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B,inputs,H,W], H and W multiples of 32, to five maps [B,channels[i],H/2^(i+1),W/2^(i+1)]."""
        features = [self.bn1(self.conv1(x)).relu()]
        x = self.maxpool(features[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def load_imagenet(self, weights: Mapping[str, Tensor]) -> None:
        """Loads a torchvision classifier's weights by name, without its `fc`; inputs beyond the third start at zero.

        Raises:
            InvalidCheckpoint: names or shapes of the weights are not this network's.
        """
        state = {name: value for name, value in weights.items() if not name.startswith("fc.")}
        first = state.get("conv1.weight")
        if first is not None and first.shape[1] < self.conv1.in_channels:
            extra = self.conv1.in_channels - first.shape[1]
            state["conv1.weight"] = torch.cat([first, first.new_zeros(len(first), extra, *first.shape[2:])], dim=1)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise InvalidCheckpoint(
                "The weights do not fit the ResNet encoder.",
                note=str(error),
                hint="Use a classifier of torchvision with the same depth and width, such as resnet50.",
            ) from error


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)))
