"""A convolutional trunk for compact models: residual 3 x 3 convolutions at four levels."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.config import SAM2Config
from etsam.sam2.layers import LayerNorm2d


class ResidualBlock(nn.Module):
    """``x + conv(gelu(conv(norm(x))))`` at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.gelu(self.conv1(self.norm(x))))
        return x + y


class ContextStem(nn.Module):
    """Frames averaged to stride ``stride``, a 5 x 5 convolution and a pointwise one."""

    def __init__(self, channels: int, middle: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, middle, 5, padding=2)
        self.pointwise = nn.Conv2d(middle, width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.pointwise(F.gelu(self.conv(F.avg_pool2d(frames, self.stride))))
        return out


class ConvTrunk(nn.Module):
    """Frames (b, c, h, w) -> four feature maps, finest first; no position encoding.

    Without absolute positions the same weights see crops in training and whole slices in use.
    """

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        widths, kernel = config.widths, config.patch_kernel
        self.stem = nn.Conv2d(
            config.in_channels, widths[0], kernel, config.patch_stride, kernel // 2
        )
        self.context = None
        if config.context_width:
            self.context = ContextStem(
                config.in_channels, config.context_width, widths[0], config.patch_stride
            )
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, config.stages, strict=True)
        )
        self.downsamples = nn.ModuleList(
            nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, 2)) for a, b in pairwise(widths)
        )
        blocks = config.top_down_blocks
        pairs = list(pairwise(widths)) if blocks else []
        self.merges = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.refinements = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(a) for _ in range(blocks))) for a, _ in pairs
        )

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = self.stem(frames)
        if self.context is not None:
            x = x + self.context(frames)
        x = self.levels[0](x)
        features = [x]
        for downsample, level in zip(self.downsamples, self.levels[1:], strict=False):
            x = level(downsample(x))
            features.append(x)
        return self._refined(features) if len(self.merges) else features

    def _refined(self, features: list[Tensor]) -> list[Tensor]:
        """Let coarser maps flow back into the finer ones."""
        out = features[-1:]
        ways = zip(features[-2::-1], reversed(self.merges), reversed(self.refinements), strict=True)
        for finer, merge, refine in ways:
            coarser = F.interpolate(merge(out[0]), scale_factor=2.0, mode="nearest")
            out.insert(0, refine(finer + coarser))
        return out
