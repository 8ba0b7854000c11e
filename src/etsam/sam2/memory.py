"""Memory of earlier slices: the encoder that makes it, the attention that reads it, the bank."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.attention import attend, in_blocks
from etsam.sam2.config import SAM2Config
from etsam.sam2.layers import Attention, LayerNorm2d
from etsam.sam2.linear import Linear
from etsam.sam2.positions import axial_rotation, rotate, sine_map


class MaskDownSampler(nn.Module):
    """Mask logits (b, 1, h, w) -> (b, d_model, h / s, w / s) by halving convolutions."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, stride = 1, config.token_stride
        while stride > 1:
            layers += [
                nn.Conv2d(width, width * 4, 3, 2, 1),
                LayerNorm2d(width * 4),
                nn.GELU(),
            ]
            width, stride = width * 4, stride // 2
        self.encoder = nn.Sequential(*layers, nn.Conv2d(width, config.d_model, 1))

    def forward(self, mask: Tensor) -> Tensor:
        out: Tensor = self.encoder(mask)
        return out


class CXBlock(nn.Module):
    """ConvNeXt block: depthwise 7 x 7, normalise, MLP, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = Linear(width, 4 * width)
        self.pwconv2 = Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.pwconv1(y, "gelu"))
        return x + y.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two ConvNeXt blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CXBlock(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Image features and the mask found in them -> spatial memory (b, memory_dim, h, w)."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownSampler(config)
        self.pix_feat_proj = nn.Conv2d(config.d_model, config.d_model, 1)
        self.fuser = Fuser(config.d_model)
        self.out_proj = nn.Conv2d(config.d_model, config.memory_dim, 1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        x = self.pix_feat_proj(features) + self.mask_downsampler(mask)
        memory: Tensor = self.out_proj(self.fuser(x))
        return memory


class RotaryAttention(Attention):
    """One-head attention with axial rotary positions on queries and spatial keys."""

    def __init__(self, config: SAM2Config, kv_width: int) -> None:
        super().__init__(config.d_model, 1, config.d_model, kv_width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotations: Rotations) -> Tensor:
        """Queries (b, n, d) over keys (b, m, kv); the last ``rotations.plain`` keys stay plain."""
        q = rotate(self.q_proj(q), rotations.query)[:, None]
        k = rotate(self.k_proj(k), rotations.key, rotations.plain)[:, None]
        if v.shape[-1] < q.shape[-1] and in_blocks(q, narrow=True):
            # weights of attention sum to 1: values may be projected after they were averaged
            out = self.v_proj(attend(q, k, v[:, None])[:, 0])
        else:
            out = attend(q, k, self.v_proj(v)[:, None])[:, 0]
        projected: Tensor = self.out_proj(out)
        return projected


@dataclass(frozen=True)
class Rotations:
    """Rotary encodings of the queries and of one map of keys, and how many keys have none."""

    query: Tensor
    key: Tensor
    plain: int = 0


class MemoryAttentionLayer(nn.Module):
    """Self-attention over the frame, cross-attention to memory, feed-forward."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = RotaryAttention(config, width)
        self.cross_attn_image = RotaryAttention(config, config.memory_dim)
        self.linear1 = Linear(width, config.memory_feed_forward)
        self.linear2 = Linear(config.memory_feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], rotations: Rotations) -> Tensor:
        keys, values = memory
        y: Tensor = self.norm1(x)
        own = Rotations(rotations.query, rotations.query)
        x = x + self.self_attn.attend(y, y, y, own)
        x = x + self.cross_attn_image.attend(self.norm2(x), keys, values, rotations)
        y = self.linear2(self.linear1(self.norm3(x), "relu"))
        return x + y


class MemoryAttention(nn.Module):
    """Condition a frame's features on the memory of other frames."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.pool = config.memory_pool
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(config) for _ in range(config.memory_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, features: Tensor, memory: tuple[Tensor, Tensor], pointers: int) -> Tensor:
        """Features (b, d, h, w); ``memory`` = keys and values (b, m, memory_dim).

        The last ``pointers`` memory tokens are object pointers, which have no place.
        """
        d, h, w = features.shape[1:]
        device, pool = features.device, self.pool
        grid = (h // pool, w // pool)
        place = axial_rotation(d, *grid, pool, device)
        rotations = Rotations(place, place, pointers)
        placed = features + 0.1 * sine_map(d, h, w, device).to(features.dtype)
        asking = F.avg_pool2d(placed, pool) if pool > 1 else placed
        before = asking.flatten(2).transpose(1, 2)
        x = before
        for layer in self.layers:
            x = layer(x, memory, rotations)
        if pool > 1:
            change = torch.unflatten((x - before).transpose(1, 2), 2, grid)
            placed = placed + F.interpolate(change, (h, w), mode="nearest")
            x = placed.flatten(2).transpose(1, 2)
        out: Tensor = self.norm(x).transpose(1, 2)
        return torch.unflatten(out, 2, (h, w))


@dataclass(frozen=True)
class Memory:
    """What is kept of one slice."""

    spatial: Tensor
    """(b, n, memory_dim) tokens."""
    pointer: Tensor
    """(b, d_model) object pointer."""


@dataclass
class MemoryBank:
    """Memories that later slices attend to: all conditioning slices, a few recent ones.

    The bank does not grow with the number of tracked slices: ``spatial`` keeps the last
    ``num_maskmem - 1``, ``pointers`` the last ``max_pointers - 1``. ``choice`` (b, candidates) is how much of
    each candidate the last slice answered with.
    """

    conditioning: dict[int, Memory] = field(default_factory=dict)
    spatial: deque[tuple[int, Tensor]] = field(default_factory=deque)
    pointers: deque[tuple[int, Tensor]] = field(default_factory=deque)
    choice: Tensor | None = None

    @classmethod
    def for_config(cls, config: SAM2Config) -> MemoryBank:
        """An empty bank with the sizes of ``config``."""
        return cls(
            spatial=deque(maxlen=config.num_maskmem - 1),
            pointers=deque(maxlen=config.max_pointers - 1),
        )

    def remember(self, z: int, memory: Memory) -> None:
        """Add a tracked slice, forgetting the oldest one."""
        self.spatial.append((z, memory.spatial))
        self.pointers.append((z, memory.pointer))
