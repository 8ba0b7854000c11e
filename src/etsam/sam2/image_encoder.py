"""Trunk and feature pyramid: a frame becomes features at three strides."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.config import LEVELS, SAM2Config
from etsam.sam2.conv_trunk import ConvTrunk
from etsam.sam2.hiera import Hiera


class Lateral(nn.Module):
    """The 1 x 1 convolution of one pyramid level."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class FpnNeck(nn.Module):
    """Feature pyramid (Lin et al. 2017): ``convs[0]`` belongs to the coarsest level."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            Lateral(width, config.d_model) for width in reversed(config.level_channels)
        )
        self.top_down_levels = config.top_down_levels

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        out: list[Tensor] = []
        for conv, level in zip(self.convs, reversed(range(LEVELS)), strict=True):
            x = conv(levels[level])
            if out and level in self.top_down_levels:
                x = x + F.interpolate(out[0], scale_factor=2.0, mode="nearest")
            out.insert(0, x)
        return out


class ImageEncoder(nn.Module):
    """Frames (b, c, h, w) -> three (b, d_model, ., .) maps, finest first.

    The coarsest trunk level only feeds the pyramid and is dropped (``scalp=1`` in SAM 2).
    """

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config) if config.trunk == "hiera" else ConvTrunk(config)
        self.neck = FpnNeck(config)

    def forward(self, frames: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.neck(self.trunk(frames))
        return levels[:-1]
