"""The sizes of a SAM 2.1 network: one frozen record, with the published presets."""

from __future__ import annotations

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
        for name, value, good in self._rules():
            if not good:
                raise ValueError(f"SAM2Config.{name} = {value!r} does not fit the other sizes")

    def _rules(self) -> list[tuple[str, Any, bool]]:
        return [
            ("trunk", self.trunk, self.trunk in ("hiera", "conv")),
            ("stages", self.stages, len(self.stages) == LEVELS and min(self.stages) > 0),
            ("stages", self.stages, sum(self.stages) <= MAX_BLOCKS),
            ("memory_layers", self.memory_layers, self.memory_layers <= MAX_BLOCKS),
            ("widths", self.widths, len(self.widths) == (LEVELS if self.trunk == "conv" else 0)),
            ("context_width", self.context_width, self.context_width >= 0),
            ("top_down_blocks", self.top_down_blocks, 0 <= self.top_down_blocks <= MAX_BLOCKS),
            ("decoder_tokens", self.decoder_tokens, self.decoder_tokens >= 0),
            ("settling", self.settling, self.settling >= 1),
            ("image_size", self.image_size, self.image_size % (8 * self.patch_stride) == 0),
            ("d_model", self.d_model, self.d_model % (4 * self.decoder_heads) == 0),
            ("memory_dim", self.memory_dim, self.d_model % self.memory_dim == 0),
            ("memory_pool", self.memory_pool, self.memory_pool >= 1),
            ("num_maskmem", self.num_maskmem, self.num_maskmem >= 2),
            ("embed_dim", self.embed_dim, self.embed_dim % self.num_heads == 0),
        ]

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
        for key, value in sizes.items():
            if key != "trunk" and not _is_size(value, least=0 if key in OPTIONAL else 1):
                raise ValueError(f"SAM2Config.{key} = {str(value)[:60]} is no size of a network")
        return cls(**sizes)


def _is_size(value: Any, least: int) -> bool:
    """Whether a value read from a file is a whole number, or several, that a network may have."""
    if isinstance(value, tuple):
        return len(value) <= MAX_BLOCKS and all(_is_size(item, 0) for item in value)
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
