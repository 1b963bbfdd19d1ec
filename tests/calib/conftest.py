"""A bundle with random weights whose layers are of every kind that can be int8, and photographs to calibrate it on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge4d.calib.calibrate import Calibration, calibrate
from edge4d.calib.photos import CalibrationData, CalibrationPhoto
from edge4d.runtime.bundle import Bundle

GROUPS = 4
SIZE = (64, 32)


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory: pytest.TempPathFactory, write_bundle) -> Path:
    """A bundle of the system pixel_to_4d: perceive is three convolutions, core a U-Net with a residual block and a
    block of matrix products."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bundles") / "float.e4d"
    single = (("readout",), ("lift",))
    return write_bundle(folder, *_networks(), groups=GROUPS, largest=(128, 64), single=single)


@pytest.fixture
def bundle_copy(float_bundle: Path, tmp_path: Path) -> Path:
    """One that a test may write over."""
    return Path(shutil.copytree(float_bundle, tmp_path / "copy.e4d"))


@pytest.fixture(scope="session")
def photos():
    """Makes so many photographs for that bundle."""
    return _photos


@pytest.fixture(scope="session")
def int8(float_bundle: Path, tmp_path_factory: pytest.TempPathFactory, photos) -> Calibration:
    """That bundle, calibrated on them. Not to be written over."""
    folder = tmp_path_factory.mktemp("calibrated")
    return calibrate(Bundle.load(float_bundle), photos(), folder / "int8.e4d", cache=folder / "cache")


@pytest.fixture
def cache(int8: Calibration, tmp_path: Path) -> Path:
    """With the figures of that calibration."""
    return Path(shutil.copytree(int8.bundle.folder.parent / "cache", tmp_path / "cache"))


def _photos(count: int = 3, seed: int = 0) -> CalibrationData:
    """Coarse noise with a red thing in it, which moves."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        image = rng.integers(20, 200, (8, 16, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        image[8:20, 16:32] = (250, 60, 60)
        made.append(CalibrationPhoto(f"{index}.png", image, (64.0, 64.0, 32.0, 16.0)))
    return CalibrationData(tuple(made), SIZE, {"pictures": count, "samples": count})


def _networks():
    import torch
    from torch import nn

    torch.manual_seed(0)

    def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, stride, 1)

    class Perceive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = conv(3, 12), conv(12, 16), conv(16, 1)
            self.readout = Readout()

        def forward(self, image, intrinsics):
            raw = self.head(torch.relu(self.second(torch.relu(self.first(image)))))
            return self.readout(raw, image, intrinsics)

    class Readout(nn.Module):
        def forward(self, raw, image, intrinsics):
            depth = 6 + torch.tanh(raw) + 0 * intrinsics[:, :1, None, None]
            return depth, (image[:, 0] > 0.9).to(torch.int32)

    class Body(nn.Module):
        """stem → down → residual → up → joined with the stem → mixed per pixel → raw [B,7,H,W]."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down, self.one, self.two = conv(6, 16), conv(16, 24, 2), conv(24, 24), conv(24, 24)
            self.join, self.noise, self.head = conv(40, 16), conv(2, 24), conv(16, 7)
            self.mix, self.out = (nn.Parameter(0.3 * torch.randn(*shape)) for shape in ((16, 32), (32, 16)))

        def forward(self, x, noise):
            fine = torch.relu(self.stem(x))
            coarse = torch.relu(self.down(fine))
            coarse = torch.relu(coarse + self.two(torch.relu(self.one(coarse))))
            level = torch.relu(self.noise(noise)).mean((2, 3), keepdim=True)
            up = nn.functional.interpolate(coarse + level, scale_factor=2.0, mode="bilinear", align_corners=False)
            joined = torch.relu(self.join(torch.cat([up, fine], 1)))
            tokens = nn.functional.gelu(joined.flatten(2).transpose(1, 2) @ self.mix) @ self.out
            return self.head(tokens.transpose(1, 2).unflatten(2, joined.shape[-2:]))

    class Core(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.lift = Body(), Lift()

        def forward(self, image, depth, instances, noise, intrinsics):
            ids = instances[:, None].to(image.dtype)
            raw = self.body(torch.cat([image, depth / 6, ids, ids * depth / 6], 1), noise)
            return self.lift(raw, image, depth, instances, intrinsics)

    class Lift(nn.Module):
        def forward(self, raw, image, depth, instances, intrinsics):
            height, width = image.shape[-2:]
            x = (torch.arange(width) + 0.5 - intrinsics[:, 2:3]) / intrinsics[:, :1]
            y = (torch.arange(height) + 0.5 - intrinsics[:, 3:4]) / intrinsics[:, 1:2]
            z = depth[:, 0] * (1 + 0.1 * torch.tanh(raw[:, 0]))
            means = torch.stack([x[:, None] * z, y[:, :, None] * z, z], -1).flatten(1, 2)
            quats = torch.cat([torch.ones_like(means[..., :1]), torch.zeros_like(means)], -1)
            scales = ((0.5 + 0.2 * torch.sigmoid(raw[:, 1])) * z / intrinsics[:, :1, None]).flatten(1)
            opacities = (0.9 + 0.09 * torch.tanh(raw[:, 2])).flatten(1)
            colors = (image + 0.2 * torch.tanh(raw[:, 3:6])).flatten(2).transpose(1, 2)
            first = (torch.arange(GROUPS) == 1).to(image.dtype)[None, :, None]
            zeros = torch.zeros(1, GROUPS, 3) + 0 * raw.mean()
            linear = torch.stack([first * (raw[:, 6].mean() + torch.tensor([1.0, 0.0, 0.0])), zeros], 2)
            scales = scales[..., None].expand(-1, -1, 3)
            groups = instances.flatten(1)
            return means, quats, scales, opacities, colors, groups, zeros, linear, torch.zeros_like(linear)

    return Perceive(), Core()
