"""Small layers that several parts of SAM 2.1 share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.attention import attend
from etsam.sam2.linear import Activation, Linear


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a (b, c, h, w) map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """Learned tokens (count, width), normally distributed at the start.

    Like ``nn.Embedding``, but building it without memory does not import PyTorch's compiler.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight)


class MLP(nn.Module):
    """Linear layers with an activation between them (none after the last)."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        layers: int,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        n_in, hidden, n_out = sizes
        widths = [n_in] + [hidden] * (layers - 1) + [n_out]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = layer(x, self.activation)
        out: Tensor = last(x)
        return out


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the embedding."""

    def __init__(self, width: int, heads: int, inner: int, kv_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, inner)
        self.k_proj = Linear(kv_width or width, inner)
        self.v_proj = Linear(kv_width or width, inner)
        self.out_proj = Linear(inner, width)

    def split(self, x: Tensor) -> Tensor:
        """(b, n, inner) -> (b, heads, n, inner / heads)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.mix(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of projected queries, keys and values, (b, n or m, inner) -> (b, n, width)."""
        out = attend(self.split(q), self.split(k), self.split(v))
        x: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return x
