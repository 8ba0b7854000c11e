"""The sizes of a SAM 2.1 network: one frozen record, with the published presets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

LEVELS = 4
"""Feature levels of every trunk (strides 1, 2, 4 and 8 times ``patch_stride``)."""

MAX_SIZE = 1 << 16  # larger numbers in a checkpoint are damage or malice
MAX_BLOCKS = 256
# sizes of parts that may be missing
OPTIONAL = ("context_width", "top_down_blocks", "decoder_tokens")


@dataclass(frozen=True)
class SAM2Config:
    """What varies between SAM 2.1 networks; the defaults are ``sam2.1_hiera_b+``.

    The 33 flags that never vary in SAM 2.1 (object scores, signed pointer positions, memory
    sigmoid scale 20 and bias -10, ...) are hard-wired in the network.

    Attributes
    ----------
    image_size
        Side of the square frame in pixels; compact models accept any multiple of
        ``8 * patch_stride`` and use it only as the size they were trained for.
    in_channels
        Channels of a frame (3 in SAM 2.1).
    trunk
        ``hiera`` (windowed transformer) or ``conv`` (residual 3 x 3 convolutions, for compact
        models); both give four levels of ``embed_dim * (1, 2, 4, 8)`` or ``widths`` channels.
    widths
        Channels of the four levels of a ``conv`` trunk; empty for ``hiera``.
    stages
        Blocks in each level.
    context_width
        Channels of a second stem of a ``conv`` trunk that looks at frames of half the resolution,
        where stacked neighbours tell leaning membranes from noise; 0 for none.
    top_down_blocks
        Residual blocks at each finer level of a ``conv`` trunk once the coarser one has been added to
        it, as in a U-Net's decoder; 0 for none.
    patch_stride
        Stride of the first convolution: mask logits come at this stride (4 in SAM 2.1).
    memory_pool
        Side of the square of tokens averaged into one for memory attention, of memories as EdgeTAM and
        EfficientTAM do and of the frame that asks them as well; what attention changes is added to
        the frame's own tokens (1 in SAM 2.1; 2 makes memory attention about sixteen times as cheap).
    top_down_levels
        Levels of the feature pyramid that receive the next coarser one.
    decoder_tokens
        Image tokens of the largest frames trained on. Over more of them the mask decoder's attention is
        sharpened (`etsam.sam2.mask_decoder.ImageAttention`), since it would be spread too thin; 0 for never (SAM 2.1).
    settling
        Tracked slices in which a change of candidate settles: each slice answers with a mean of its candidates
        that moves one part in so many towards the best one; 1 for the best one at once (SAM 2.1).
    """

    image_size: int = 1024
    in_channels: int = 3
    trunk: Literal["hiera", "conv"] = "hiera"
    widths: tuple[int, ...] = ()
    context_width: int = 0
    top_down_blocks: int = 0
    embed_dim: int = 112
    num_heads: int = 2
    stages: tuple[int, ...] = (2, 3, 16, 3)
    global_blocks: tuple[int, ...] = (12, 16, 20)
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    pos_embed_size: tuple[int, int] = (14, 14)
    patch_kernel: int = 7
    patch_stride: int = 4
    top_down_levels: tuple[int, ...] = (2, 3)
    d_model: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    memory_feed_forward: int = 2048
    memory_pool: int = 1
    num_maskmem: int = 7
    max_pointers: int = 16
    decoder_feed_forward: int = 2048
    decoder_heads: int = 8
    decoder_tokens: int = 0
    settling: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), isinstance(field.default, tuple)
            least = 0 if field.name in OPTIONAL else 1
            if field.name != "trunk" and not _is_size(value, least, several=known):
                numbers = "a list of whole numbers" if known else f"a whole number from {least} on"
                self._refuse(field.name, f"{numbers}, at most {MAX_SIZE}")
        for name, good, expected in self._rules():
            if not good:
                self._refuse(name, expected)

    def _refuse(self, name: str, expected: str) -> None:
        value = repr(getattr(self, name))[:60]
        raise ValueError(f"SAM2Config.{name} = {value}: expected {expected}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Names, whether their values fit, and what would; later ones rely on the earlier."""
        pieces, stride, width = 8 * self.patch_stride, self.patch_stride, self.d_model
        tokens, channels = self.image_size // self.token_stride, 4 * self.decoder_heads
        yield "trunk", self.trunk in ("hiera", "conv"), "hiera or conv"
        deep = (
            len(self.stages) == LEVELS and min(self.stages) > 0 and sum(self.stages) <= MAX_BLOCKS
        )
        yield "stages", deep, f"{LEVELS} numbers from 1 on, at most {MAX_BLOCKS} in all"
        for name in ("memory_layers", "top_down_blocks"):
            yield name, getattr(self, name) <= MAX_BLOCKS, f"at most {MAX_BLOCKS}"
        yield "patch_stride", stride & (stride - 1) == 0, "a power of two"
        yield "patch_kernel", self.patch_kernel % 2 == 1, "an odd number"
        yield (
            "image_size",
            self.image_size % pieces == 0,
            f"a multiple of 8 * patch_stride, {pieces}",
        )
        known = set(self.top_down_levels) <= set(range(LEVELS))
        yield "top_down_levels", known, f"levels from 0 to {LEVELS - 1}"
        wide = width % channels == 0 and width >= 8
        yield "d_model", wide, f"a multiple of 4 * decoder_heads, {channels}, from 8 on"
        divides = self.memory_dim % 4 == 0 and width % self.memory_dim == 0
        yield "memory_dim", divides, f"a multiple of 4 that divides d_model, {width}"
        yield "memory_pool", self.memory_pool <= tokens, f"at most the {tokens} tokens of a side"
        yield "num_maskmem", self.num_maskmem >= 2, "a number from 2 on"
        heads = self.num_heads
        yield "embed_dim", self.embed_dim % heads == 0, f"a multiple of num_heads, {heads}"
        yield from self._conv_rules() if self.trunk == "conv" else self._hiera_rules()

    def _conv_rules(self) -> Iterator[tuple[str, bool, str]]:
        good = len(self.widths) == LEVELS and min(self.widths) > 0
        yield "widths", good, f"{LEVELS} numbers from 1 on"

    def _hiera_rules(self) -> Iterator[tuple[str, bool, str]]:
        yield "widths", not self.widths, "none, with a hiera trunk"
        position, blocks = self.pos_embed_size, sum(self.stages)
        yield "pos_embed_size", len(position) == 2 and min(position) > 0, "2 numbers from 1 on"
        known = set(self.global_blocks) <= set(range(blocks))
        yield "global_blocks", known, f"blocks from 0 to {blocks - 1}"
        windows = self.window_spec
        good = len(windows) == LEVELS and windows[0] > 0
        yield "window_spec", good, f"{LEVELS} numbers, the first from 1 on"
        good = all(self._halves(level) for level in range(LEVELS - 1))
        yield "window_spec", good, "even numbers for the first 3, so that windows can be halved"

    def _halves(self, level: int) -> bool:
        """Whether the block that halves a level's tokens, in that level's windows, halves these too."""
        window, side = self.window_spec[level], self.image_size // self.patch_stride >> level
        if window == 0 or sum(self.stages[: level + 1]) in self.global_blocks:
            return True
        return window > 1 and -(-side // window) == -(-(side // 2) // (window // 2))

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the four trunk levels, finest first."""
        if self.trunk == "conv":
            return self.widths
        return tuple(self.embed_dim * 2**level for level in range(LEVELS))

    @property
    def token_stride(self) -> int:
        """Frame pixels per side of one image token (16 in SAM 2.1)."""
        return 4 * self.patch_stride

    @classmethod
    def names(cls) -> set[str]:
        """Names of all sizes."""
        return {field.name for field in fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SAM2Config:
        """Build a config from JSON types.

        Raises
        ------
        ValueError
            When a name is not a field, or a value does not fit.
        """
        known = cls.names()
        if unknown := sorted(set(values) - known):
            raise ValueError(f"SAM2Config has no {unknown}; its fields are {sorted(known)}")
        sizes: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**sizes)


def _is_size(value: Any, least: int, *, several: bool) -> bool:
    """Whether a value is a whole number, or several, that a network may have."""
    if several:
        is_list = isinstance(value, tuple) and len(value) <= MAX_BLOCKS
        return is_list and all(_is_size(item, 0, several=False) for item in value)
    return type(value) is int and least <= value <= MAX_SIZE


TINY = SAM2Config(
    embed_dim=96,
    num_heads=1,
    stages=(1, 2, 7, 2),
    global_blocks=(5, 7, 9),
    pos_embed_size=(7, 7),
)
SMALL = SAM2Config(
    embed_dim=96,
    num_heads=1,
    stages=(1, 2, 11, 2),
    global_blocks=(7, 10, 13),
    pos_embed_size=(7, 7),
)
BASE_PLUS = SAM2Config()
LARGE = SAM2Config(
    embed_dim=144,
    num_heads=2,
    stages=(2, 6, 36, 4),
    global_blocks=(23, 33, 43),
    window_spec=(8, 4, 16, 8),
    pos_embed_size=(7, 7),
)
PRESETS = {"tiny": TINY, "small": SMALL, "base_plus": BASE_PLUS, "large": LARGE}
"""The published sizes (facebookresearch/sam2, ``configs/sam2.1``)."""
