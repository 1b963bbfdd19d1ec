"""The motion VAE of GVFDiffusion (arXiv 2507.23785), with the official names of weights.

It encodes how the points of a mesh move as latents that belong to some of the canonical Gaussians, and decodes from
them how every Gaussian changes. Frames are coded one by one: each B below is one frame of one object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge4d.export.models.layers.attention import attend, split_heads

EPS = 1e-6


@dataclass(frozen=True)
class MotionVaeConfig:
    """Sizes of the network; the default is the official one.

    Attributes:
        dim: channels of a token; a multiple of 6.
        depth: blocks of the decoder.
        heads: attention heads; divide `dim`.
        latent_channels: of a latent.
        gaussian_channels: of a canonical Gaussian, and of a change (see `edge4d.runtime.variation_field`).
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    latent_channels: int = 16
    gaussian_channels: int = 14


def normalised(x: Tensor) -> Tensor:
    """x [...,dim] with mean 0 and deviation 1 over its channels."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)


class Attention(nn.Module):
    """Multi-head attention to itself or to a context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B,L,dim], context [B,S,dim] → [B,L,dim]."""
        keys, values = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), keys, values))
        projected: Tensor = self.to_out(attend(q, k, v))
        return projected


class Geglu(nn.Module):
    """Half of the channels, each times the GELU of its partner in the other half."""

    def forward(self, x: Tensor) -> Tensor:
        values, gates = x.chunk(2, dim=-1)
        return values * functional.gelu(gates)


class FeedForward(nn.Module):
    """Two linear layers around a gated GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 8 * dim), Geglu(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim]."""
        y: Tensor = self.net(x)
        return y


class PreNorm(nn.Module):
    """A module behind norms of its inputs."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.fn(*(normalised(x) for x in inputs))
        return y


class Block(nn.ModuleList):
    """Attention and a feed-forward part, each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__([PreNorm(Attention(dim, heads)), PreNorm(FeedForward(dim))])

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """[B,L,dim] → [B,L,dim], with the context [B,S,dim] that is attended to instead of x."""
        attention, feed_forward = self
        x = x + attention(x, *context)
        y: Tensor = x + feed_forward(x)
        return y


class PositionEncoding(nn.Module):
    """Positions [...,3] to [...,dim]: per coordinate dim/6 sines and as many cosines.

    The frequencies are float64 in official checkpoints and loaded as such; they are used in the positions' type.
    """

    omega: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        count = dim // 6
        exponents = torch.arange(count, dtype=torch.float64) / (count / 2)  # up to nearly 2, as officially
        self.register_buffer("omega", 1.0 / 10000**exponents)

    def forward(self, positions: Tensor) -> Tensor:
        angles = positions[..., None] * self.omega.to(positions.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Embedding(nn.Sequential):
    """Positions, motion or Gaussians to normalised channels. Kept in float32: half has four digits of a position."""

    def __init__(self, module: nn.Module, dim: int) -> None:
        super().__init__(module, nn.LayerNorm(dim, elementwise_affine=False))


class MotionVae(nn.Module):
    """Encoder and decoder in their plain form; engines compute the decoder in its fast form (`fast`)."""

    def __init__(self, config: MotionVaeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MotionVaeConfig()
        dim, heads = config.dim, config.heads
        self.input_embedding = Embedding(nn.Linear(3, dim), dim)
        self.gs_embedding = Embedding(nn.Linear(config.gaussian_channels, dim), dim)
        self.position_encoding = Embedding(PositionEncoding(dim), dim)
        self.cross_attend_blocks = Block(dim, heads)
        self.mean_fc = nn.Linear(dim, config.latent_channels)
        self.logvar_fc = nn.Linear(dim, config.latent_channels)
        self.proj = nn.Linear(config.latent_channels, dim)
        self.layers = nn.ModuleList(Block(dim, heads) for _ in range(config.depth))
        self.decoder_cross_attn = PreNorm(Attention(dim, heads))
        self.to_outputs = nn.Linear(dim, config.gaussian_channels)

    def encode(self, motion: Tensor, points: Tensor, anchor_motion: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of the latents.

        Args:
            motion: [B,M,3] how far a mesh's points are from where they are in the canonical frame.
            points: [B,M,3] or [1,M,3] where that is.
            anchor_motion: [B,L,3] the same at the Gaussians that the latents belong to, interpolated.
            anchors: [B,L,3] or [1,L,3] their positions.

        Returns:
            Mean and log variance [B,L,latent_channels].
        """
        x = self.input_embedding(anchor_motion) + self.position_encoding(anchors)
        context = self.input_embedding(motion) + self.position_encoding(points)
        x = self.cross_attend_blocks(x, context)
        return self.mean_fc(x), self.logvar_fc(x).clamp(-30.0, 20.0)

    def decode(self, samples: Tensor, gaussians: Tensor) -> Tensor:
        """How Gaussians change.

        Args:
            samples: [B,L,latent_channels].
            gaussians: [B,N,gaussian_channels] canonical, in query order.

        Returns:
            [B,N,gaussian_channels] in delta order, to be added to raw values before they are activated.
        """
        changes: Tensor = self.to_outputs(self.decoder_cross_attn(self.queries(gaussians), self.latents(samples)))
        return changes

    def latents(self, samples: Tensor) -> Tensor:
        """[B,L,latent_channels] → [B,L,dim], what the Gaussians attend to."""
        x: Tensor = self.proj(samples)
        for block in self.layers:
            x = block(x)
        return x

    def queries(self, gaussians: Tensor) -> Tensor:
        """[B,N,gaussian_channels] → [B,N,dim]."""
        embedded: Tensor = self.gs_embedding(gaussians) + self.position_encoding(gaussians[..., :3])
        return embedded

    @property
    def decoder_attention(self) -> Attention:
        """The attention from Gaussians to latents, without its norms."""
        attention = self.decoder_cross_attn.fn
        assert isinstance(attention, Attention)
        return attention
