"""Multi-head attention between the linear layers, which differ from one network to the next."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B,L,heads·D] → [B,heads,L,D]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """queries [B,heads,L,D], keys and values [B,heads,S,D] → [B,L,heads·D], with weights softmax(q·k / √D).

    Args:
        mask: true where a key counts, of a shape that broadcasts to [B,heads,L,S].
    """
    return functional.scaled_dot_product_attention(queries, keys, values, mask).transpose(1, 2).flatten(2)
