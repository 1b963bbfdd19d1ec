"""The fast forms of the variation field and of the motion VAE's decoder: what engines compute.

They are exactly the plain forms, with what repeats done once: `DitCond` and `DitStep` part the transformer into what
depends on the clip alone and what every step of the sampler needs; `VaeLatent`, `VaeQuery` and `VaeAttend` part the
decoder into what depends on frames, on Gaussians, and on both. All hold one object: there is no batch. `VaeEncode`,
from a mesh instead of a clip, has nothing to save.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge4d.export.models.gvf_diffusion.motion_vae import MotionVae, normalised
from edge4d.export.models.gvf_diffusion.variation_field import VariationField
from edge4d.export.models.layers.attention import split_heads

CONTEXTS = ("image_keys", "image_values", "static_keys", "static_values")
"""Of each block, in this order: what `DitCond` returns and `DitStep` takes."""


class Standardise(nn.Module):
    """Values [...,C] of a mean and a deviation [C] to values of mean 0 and deviation 1. Kept in float32."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def restored(self, x: Tensor) -> Tensor:
        """What `forward` was given."""
        return x * self.deviation + self.mean


class DitCond(nn.Module):
    """Keys and values of a clip for all blocks: the `dit_cond` stage."""

    def __init__(self, dit: VariationField, static: Standardise) -> None:
        super().__init__()
        self.dit = dit
        self.static = static

    def forward(self, images: Tensor, static: Tensor) -> tuple[Tensor, ...]:
        """images [T,S,image_channels], static [M,gaussian_channels] in query order → CONTEXTS of each block.

        Keys and values are [T,heads,S,dim/heads] of the pictures and [1,heads,M,dim/heads] of the Gaussians.
        """
        contexts = self.dit.keys_values(images, self.static(static)[None])
        return tuple(tensor for image, gaussians in contexts for tensor in (*image, *gaussians))


class DitStep(nn.Module):
    """One evaluation of the network with the keys and values of its clip: the `dit_step` stage.

    Args:
        positions: what is done to positions first; by default nothing.
    """

    def __init__(self, dit: VariationField, positions: Standardise | None = None) -> None:
        super().__init__()
        self.dit = dit
        self.positions = nn.Identity() if positions is None else positions

    def forward(self, x: Tensor, t: Tensor, positions: Tensor, *contexts: Tensor) -> Tensor:
        """x [T,L,latent_channels], t [1], positions [L,3], what `DitCond` gave → v [T,L,latent_channels]."""
        starts = range(0, len(contexts), len(CONTEXTS))
        blocks = (((contexts[i], contexts[i + 1]), (contexts[i + 2], contexts[i + 3])) for i in starts)
        return self.dit.velocity(x[None], t, self.positions(positions)[None], blocks)[0]


class VaeLatent(nn.Module):
    """Samples of the network to the keys and values that Gaussians attend to: the `vae_latent` stage.

    All that follows the attention is linear. It is applied to the values before, which are then changes of Gaussians.

    Args:
        latents: how the transformer's samples came from the VAE's latents.
    """

    def __init__(self, vae: MotionVae, latents: Standardise) -> None:
        super().__init__()
        self.vae = vae
        self.latents = latents
        attention = vae.decoder_attention
        self.heads = attention.heads
        keys, values = _double(attention.to_kv.weight).chunk(2)
        outputs = torch.unflatten(
            _double(vae.to_outputs.weight) @ _double(attention.to_out.weight), 1, (self.heads, -1)
        )
        changes = torch.einsum("ohd,hdc->hoc", outputs, torch.unflatten(values, 0, (self.heads, -1)))
        self.to_keys, self.to_changes = _linear(keys), _linear(changes.flatten(0, 1))

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """[T,L,latent_channels] → keys [T,heads,L,D] and values [T,heads,L,gaussian_channels]."""
        latents = normalised(self.vae.latents(self.latents.restored(samples)))
        return split_heads(self.to_keys(latents), self.heads), split_heads(self.to_changes(latents), self.heads)


class VaeQuery(nn.Module):
    """Canonical Gaussians to queries, which serve every frame: the `vae_query` stage."""

    def __init__(self, vae: MotionVae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, gaussians: Tensor) -> Tensor:
        """[N,gaussian_channels] in query order → [heads,N,D], over √D already."""
        attention = self.vae.decoder_attention
        queries = split_heads(attention.to_q(normalised(self.vae.queries(gaussians[None]))), attention.heads)[0]
        return queries * (1 / math.sqrt(queries.shape[-1]))


class VaeAttend(nn.Module):
    """Queries of Gaussians, keys and values of frames to changes: the `vae_attend` stage."""

    bias: Tensor

    def __init__(self, vae: MotionVae) -> None:
        super().__init__()
        bias = _double(vae.to_outputs.weight) @ _double(vae.decoder_attention.to_out.bias)
        self.register_buffer("bias", (bias + _double(vae.to_outputs.bias)).float())

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [heads,N,D], keys [T,heads,L,D], values [T,heads,L,channels] → changes [T,N,channels]."""
        weights = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1)
        return (weights @ values).sum(1) + self.bias


class VaeEncode(nn.Module):
    """A mesh that moves to samples as the transformer would make them: the `vae_encode` stage, without noise."""

    def __init__(self, vae: MotionVae, latents: Standardise) -> None:
        from edge4d.export import custom_ops  # noqa: F401 (knn_interpolate; needs onnx, which the networks do not)

        super().__init__()
        self.vae = vae
        self.latents = latents

    def forward(self, points: Tensor, motion: Tensor, anchors: Tensor) -> Tensor:
        """Samples [T,L,latent_channels].

        Args:
            points: [P,3] of the mesh in the canonical frame.
            motion: [T,P,3] how far they are from there in each frame.
            anchors: [L,3] positions of the Gaussians that latents belong to; they move as the points around them do.
        """
        anchor_motion = torch.ops.edge4d.knn_interpolate(anchors, points, motion, k=8, beta=7.0, radius_mask=1)[0]
        mean, _ = self.vae.encode(motion, points[None], anchor_motion, anchors[None])
        samples: Tensor = self.latents(mean)
        return samples


def _double(parameter: Tensor) -> Tensor:
    return parameter.detach().double()


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    return linear
