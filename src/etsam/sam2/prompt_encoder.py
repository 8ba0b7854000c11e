"""Points, boxes and masks become tokens and a dense map (SAM, Kirillov et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.config import SAM2Config
from etsam.sam2.layers import LayerNorm2d, Tokens

NOT_A_POINT, NEGATIVE, POSITIVE, BOX_FIRST, BOX_SECOND = -1, 0, 1, 2, 3
"""Point labels; the two corners of a box are points with labels of their own."""
MASK_CHANNELS = 16


class RandomPosition(nn.Module):
    """Random Fourier features of coordinates in [0, 1] (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, half: int) -> None:
        super().__init__()
        matrix = torch.empty(2, half)
        if not matrix.is_meta:  # random numbers without memory would import the compiler
            nn.init.normal_(matrix)
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(..., 2) x, y in [0, 1] -> (..., 2 * half)."""
        matrix = self.positional_encoding_gaussian_matrix
        angle = 2 * math.pi * ((2 * coordinates.to(matrix.dtype) - 1) @ matrix)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """Encoding of a whole map, (1, channels, height, width)."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        xy = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        encoded: Tensor = self(xy)
        return encoded.permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Prompts in frame pixels -> sparse tokens (b, n, d) and a dense map (b, d, h, w)."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        width = config.d_model
        self.stride = config.token_stride
        self.pe_layer = RandomPosition(width // 2)
        self.point_embeddings = nn.ModuleList(Tokens(1, width) for _ in range(4))
        self.not_a_point_embed = Tokens(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_CHANNELS // 4, 2, 2),
            LayerNorm2d(MASK_CHANNELS // 4),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS // 4, MASK_CHANNELS, 2, 2),
            LayerNorm2d(MASK_CHANNELS),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS, width, 1),
        )
        self.no_mask_embed = Tokens(1, width)

    def sparse(self, points: Tensor, labels: Tensor, frame_size: tuple[int, int]) -> Tensor:
        """Encode points (b, n, 2) of x, y in frame pixels with labels (b, n) as (b, n + 1, d).

        One padding token follows, as in SAM when there is no box apart from the points.
        """
        points = F.pad(points + 0.5, (0, 0, 0, 1))
        labels = F.pad(labels, (0, 1), value=NOT_A_POINT)
        height, width = frame_size
        tokens = self.pe_layer(points / points.new_tensor([width, height]))
        tokens = torch.where((labels == NOT_A_POINT)[..., None], torch.zeros_like(tokens), tokens)
        table = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        return tokens + table[labels + 1]

    def forward(
        self,
        frame_size: tuple[int, int],
        batch: int,
        points: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode a prompt; without points one "not a point" stands in.

        ``mask`` is (b, 1, h, w) logits, resized to four times the token grid.
        """
        device = self.no_mask_embed.weight.device
        if points is None:
            points = (
                torch.zeros(batch, 1, 2, dtype=torch.float32, device=device),
                torch.full((batch, 1), NOT_A_POINT, device=device),
            )
        sparse = self.sparse(*points, frame_size)
        grid = (frame_size[0] // self.stride, frame_size[1] // self.stride)
        if mask is None:
            dense = self.no_mask_embed.weight[..., None, None].expand(batch, -1, *grid)
        else:
            size = (4 * grid[0], 4 * grid[1])
            if mask.shape[-2:] != size:
                mask = F.interpolate(mask.float(), size, mode="bilinear", antialias=True)
            dense = self.mask_downscaling(mask.to(self.no_mask_embed.weight.dtype))
        return sparse, dense
