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


class FpnNeck(nn.Module):
    """Feature pyramid (Lin et al. 2017): ``convs[0]`` belongs to the coarsest level."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            Lateral(width, config.d_model) for width in reversed(config.level_channels)
        )
        self.top_down_levels = config.top_down_levels

    def forward(self, levels: list[Tensor], level: int, head: nn.Conv2d | None = None) -> Tensor:
        """Map of one level, or what a 1 x 1 convolution makes of it, without making it.

        Convolutions of one pixel follow each other and nearest neighbours as a single one does, so
        the wide maps at the finest strides, which only such heads look at, need not be made.
        """
        lateral = self.convs[LEVELS - 1 - level]
        weight: Tensor = lateral.get_parameter("conv.weight")
        bias: Tensor = lateral.get_parameter("conv.bias")
        if head is not None:
            kernel = head.weight[:, :, 0, 0]
            weight = (kernel @ weight.flatten(1))[..., None, None]
            bias = kernel @ bias
        out = F.conv2d(levels[level], weight, bias)
        if level in self.top_down_levels and level + 1 < LEVELS:
            out = out + F.interpolate(self(levels, level + 1, head), scale_factor=2.0)
        return out


class ImageEncoder(nn.Module):
    """Frames (b, c, h, w) -> image features and, for the mask decoder, two finer maps.

    The coarsest trunk level only feeds the pyramid (``scalp=1`` in SAM 2).
    """

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.trunk = Hiera(config) if config.trunk == "hiera" else ConvTrunk(config)
        self.neck = FpnNeck(config)

    def forward(self, frames: Tensor, heads: tuple[nn.Conv2d, nn.Conv2d]) -> list[Tensor]:
        """The third level (b, d_model, h / 4 s, w / 4 s) after what `heads` make of the finer two.

        ``s`` is the patch stride; a head is a 1 x 1 convolution of ``d_model`` channels.
        """
        levels = self.trunk(frames)
        fine, middle = heads
        out: list[Tensor] = []
        for level, head in ((0, fine), (1, middle)):
            bias = head.bias
            assert bias is not None
            out.append(self.neck(levels, level, head) + bias[:, None, None])
        return [*out, self.neck(levels, 2)]
