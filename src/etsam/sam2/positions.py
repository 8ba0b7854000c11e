"""Position encodings: 2-D sine maps, 1-D sines for pointers, axial rotary angles."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from etsam.sam2.attention import in_parts

TEMPERATURE = 10000.0


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a map first made while tracking must serve training too
def sine_map(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Normalised 2-D sine encoding, (1, channels, height, width) float32 (Carion et al. 2020)."""
    half = channels // 2
    exponent = 2 * (torch.arange(half, dtype=torch.float32, device=device) // 2) / half
    frequencies = TEMPERATURE**exponent

    def encode(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = (steps / (steps[-1] + 1e-6) * 2 * math.pi)[:, None] / frequencies
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height)[:, None].expand(-1, width, -1)
    x = encode(width)[None].expand(height, -1, -1)
    return torch.cat((y, x), dim=2).permute(2, 0, 1)[None]


def sine_line(positions: Tensor, channels: int) -> Tensor:
    """1-D sine encoding of ``positions`` (n,) as (n, channels)."""
    half = channels // 2
    exponent = 2 * (torch.arange(half, dtype=torch.float32, device=positions.device) // 2) / half
    angle = positions[:, None] / TEMPERATURE**exponent
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a map first made while tracking must serve training too
def axial_rotation(
    channels: int, height: int, width: int, pool: int, device: torch.device
) -> Tensor:
    """Axial rotary encoding: a turn, ``cos + i sin``, for each token and pair of channels.

    Complex64, (height * width, channels / 2).

    Token (i, j) of a map pooled by ``pool`` stands at pixel ``(i * pool + (pool - 1) / 2, ...)``
    of the unpooled map, so that queries and pooled keys share one frame (Su et al. 2021;
    Heo et al. 2024 for the axial form).
    """
    frequencies = TEMPERATURE ** -(
        torch.arange(0, channels, 4, device=device)[: channels // 4].float() / channels
    )
    centre = (pool - 1) / 2
    y = torch.arange(height, device=device).float() * pool + centre
    x = torch.arange(width, device=device).float() * pool + centre
    angle_x = (x[:, None] * frequencies)[None].expand(height, -1, -1)
    angle_y = (y[:, None] * frequencies)[:, None].expand(-1, width, -1)
    angle = torch.cat((angle_x, angle_y), dim=-1).flatten(0, 1)
    return torch.complex(angle.cos(), angle.sin())


def rotate(x: Tensor, rotation: Tensor, plain: int = 0) -> Tensor:
    """Rotate neighbouring channel pairs of ``x`` (b, maps * n + plain, channels) by ``rotation``.

    Every map of n tokens is turned alike; the last ``plain`` tokens stay as they are.
    """

    def turn(maps: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.unflatten(maps.float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)

    count = x.shape[1] - plain
    maps = x[:, :count].reshape(-1, len(rotation), x.shape[2])
    rotated = in_parts(turn, maps, 4 * maps[0].numel()).view(len(x), count, -1)
    return torch.cat((rotated, x[:, count:]), dim=1) if plain else rotated
