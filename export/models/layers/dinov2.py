"""DINOv2 vision transformer with registers (Oquab et al. 2023, Darcet et al. 2023), with the official names of weights.

A frozen teacher for one picture size: positional embeddings are interpolated when it is built and when weights are
loaded, so that an exported graph holds plain matrix products only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.runtime.errors import InvalidRequest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoV2Config:
    """Sizes of the network; the default is `dinov2_vitl14_reg`.

    Attributes:
        dim: channels of a token.
        depth: blocks.
        heads: attention heads; divide `dim`.
        registers: tokens without a place in the picture.
        patch: pixels along a patch's side.
        trained_grid: patches along a side of the square pictures it was trained on (518 / 14).
    """

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    registers: int = 4
    patch: int = 14
    trained_grid: int = 37


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch, config.patch)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] → [B,P,dim], row by row."""
        patches: Tensor = self.proj(image)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v)  # [B,heads,L,dim/heads]
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class DinoV2(nn.Module):
    """Tokens before the last LayerNorm (`x_prenorm`), of pictures of one size.

    `mask_token` and `norm` are part of the official checkpoints and take no part in `x_prenorm`.

    Args:
        height, width: pixels, multiples of the patch.
        config: sizes of the network.

    Raises:
        InvalidRequest: height or width is no multiple of the patch.
    """

    positions: Tensor

    def __init__(self, height: int, width: int, config: DinoV2Config | None = None) -> None:
        super().__init__()
        config = config or DinoV2Config()
        if height % config.patch or width % config.patch:
            raise InvalidRequest(
                "DINOv2 needs whole patches.",
                note=f"The picture is {width}x{height}, a patch {config.patch}x{config.patch} pixels.",
                hint=f"Resize the picture to multiples of {config.patch} first.",
            )
        self.config = config
        self.grid = (height // config.patch, width // config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.trained_grid**2, config.dim))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        for tokens in (self.cls_token, self.register_tokens, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02)
        self.register_buffer("positions", self._interpolated_positions(), persistent=False)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self.positions = self._interpolated_positions()

    @torch.no_grad()
    def _interpolated_positions(self) -> Tensor:
        """[1,1+P,dim]: CLS as trained, the grid of patches resampled as the official models with registers do it."""
        side = self.config.trained_grid
        if self.grid == (side, side):
            return self.pos_embed.clone()
        trained = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        patches = functional.interpolate(trained.float(), size=self.grid, mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2).to(trained)], dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of pictures that are normalised with ImageNet's mean and deviation.

        Args:
            image: [B,3,H,W] of the size this was built for.

        Returns:
            Feature map [B,dim,H/14,W/14], and all tokens [B,1+registers+P,dim]: CLS, registers, patches row by row.
        """
        batch = image.shape[0]
        cls_token = (self.cls_token + self.positions[:, :1]).expand(batch, -1, -1)
        registers = self.register_tokens.expand(batch, -1, -1)
        tokens = torch.cat([cls_token, registers, self.patch_embed(image) + self.positions[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        patches = tokens[:, 1 + self.config.registers :]
        return torch.unflatten(patches.transpose(1, 2), 2, self.grid), tokens
