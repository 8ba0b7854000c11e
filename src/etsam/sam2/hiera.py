"""Hiera, the windowed hierarchical transformer trunk of SAM 2 (Ryali et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.attention import attend, in_parts
from etsam.sam2.config import SAM2Config
from etsam.sam2.layers import MLP
from etsam.sam2.linear import Linear


def pool_tokens(x: Tensor, stride: int) -> Tensor:
    """Max-pool (b, h, w, c) tokens."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), stride).permute(0, 2, 3, 1)


def partition(x: Tensor, window: int) -> Tensor:
    """Cut (b, h, w, c), zero-padded to whole windows, into (b * n, window, window, c)."""
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.view(b, rows, window, columns, window, c).transpose(2, 3)
    return x.reshape(-1, window, window, c)


def unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition` and crop to (b, height, width, c)."""
    window = windows.shape[1]
    rows, columns = -(-height // window), -(-width // window)
    x = windows.view(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(x.shape[0], rows * window, columns * window, -1)
    return x[:, :height, :width]


class MultiScaleAttention(nn.Module):
    """Attention in a window, with queries max-pooled where the level changes."""

    def __init__(self, width_in: int, width_out: int, heads: int, q_stride: int) -> None:
        super().__init__()
        self.heads, self.q_stride = heads, q_stride
        self.qkv = Linear(width_in, width_out * 3)
        self.proj = Linear(width_out, width_out)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        q, k, v = self.qkv(x).view(b, h * w, 3, self.heads, -1).unbind(2)
        if self.q_stride > 1:
            pooled = pool_tokens(q.reshape(b, h, w, -1), self.q_stride)
            h, w = pooled.shape[1:3]
            q = pooled.reshape(b, h * w, self.heads, -1)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out = out.transpose(1, 2).reshape(b, h, w, -1)
        projected: Tensor = self.proj(out)
        return projected


class Block(nn.Module):
    """One Hiera block: windowed (or global) attention, then an MLP."""

    def __init__(self, widths: tuple[int, int], heads: int, q_stride: int, window: int) -> None:
        super().__init__()
        width_in, width_out = widths
        self.window, self.q_stride = window, q_stride
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.attn = MultiScaleAttention(width_in, width_out, heads, q_stride)
        self.norm2 = nn.LayerNorm(width_out, eps=1e-6)
        self.mlp = MLP((width_out, 4 * width_out, width_out), 2, "gelu")
        if width_in != width_out:
            self.proj = Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.norm1(x)
        if hasattr(self, "proj"):
            shortcut = self.proj(x)
            if self.q_stride > 1:
                shortcut = pool_tokens(shortcut, self.q_stride)
        height, width = shortcut.shape[1:3]
        windows = partition(x, self.window) if self.window else x
        wide = 4 * shortcut.shape[-1]  # of a token between two linear layers
        attended = in_parts(self.attn, windows, wide * windows.shape[1] * windows.shape[2])
        if self.window:
            attended = unpartition(attended, height, width)
        x = shortcut + attended
        y = in_parts(lambda tokens: self.mlp(self.norm2(tokens)), x.flatten(0, 2), wide)
        return x + y.view_as(x)


class PatchEmbed(nn.Module):
    """The strided convolution that makes tokens of a frame."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        kernel = config.patch_kernel
        self.proj = nn.Conv2d(
            config.in_channels, config.embed_dim, kernel, config.patch_stride, kernel // 2
        )

    def forward(self, frames: Tensor) -> Tensor:
        tokens: Tensor = self.proj(frames)
        return tokens.permute(0, 2, 3, 1).contiguous()


class Hiera(nn.Module):
    """Frames (b, c, h, w) -> four feature maps, finest first."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        first = config.window_spec[0]
        self.pos_embed = nn.Parameter(torch.zeros(1, config.embed_dim, *config.pos_embed_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, config.embed_dim, first, first))
        self.blocks = nn.ModuleList()
        width, heads = config.embed_dim, config.num_heads
        for level, depth in enumerate(config.stages):
            for block in range(depth):
                # the first block of a level still has the window of the level before
                changes = level > 0 and block == 0
                window = config.window_spec[level - 1 if changes else level]
                if len(self.blocks) in config.global_blocks:
                    window = 0
                width_out = width * 2 if changes else width
                heads = heads * 2 if changes else heads
                stride = 2 if changes else 1
                self.blocks.append(Block((width, width_out), heads, stride, window))
                width = width_out
        self.level_ends = [sum(config.stages[: level + 1]) - 1 for level in range(4)]

    def position(self, height: int, width: int) -> Tensor:
        """Background encoding resized to the grid plus the tiled window encoding, (1, h, w, c)."""
        window = self.pos_embed_window
        background = F.interpolate(self.pos_embed, (height, width), mode="bicubic")
        repeats = (-(-height // window.shape[2]), -(-width // window.shape[3]))
        tiled = window.tile((1, 1, *repeats))[..., :height, :width]
        return (background + tiled).permute(0, 2, 3, 1)

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = self.patch_embed(frames)
        x = x + self.position(*x.shape[1:3])
        levels = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.level_ends:
                levels.append(x.permute(0, 3, 1, 2))
        return levels
