"""A small U-Net of 3×3 convolutions, batch norm (folded away on export) and ReLU, which every engine runs well."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNorm(nn.Sequential):
    """3×3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class Residual(nn.Module):
    """Two convolutions around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return functional.relu(x + self.second(self.first(x)))


def upsample(x: Tensor) -> Tensor:
    """Nearest ×2 in height and width."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class UNet(nn.Module):
    """Features at every stride of 1, 2, 4, …, 2^(L−1).

    Args:
        inputs: channels of the input.
        widths: channels at each stride, L numbers.
        blocks: residual blocks after each downsampling, L−1 numbers.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = ConvNorm(inputs, widths[0])
        pairs = list(zip(widths[:-1], widths[1:]))
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(a, b, stride=2), *(Residual(b) for _ in range(n)))
            for (a, b), n in zip(pairs, blocks)
        )
        self.up = nn.ModuleList(ConvNorm(a + b, a) for a, b in pairs)

    def forward(self, x: Tensor, finest: int = 0) -> list[Tensor]:
        """[B,C,H,W], H and W multiples of 2^(L−1), to decoder features, finest first: [B,widths[i],H/2^i,W/2^i].

        Args:
            finest: the first i that is wanted; finer features are not computed.
        """
        skips = [self.stem(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        features = [skips.pop()]
        for up, skip in zip(reversed(self.up[finest:]), reversed(skips[finest:])):
            features.append(up(torch.cat([skip, upsample(features[-1])], dim=1)))
        return features[::-1]
