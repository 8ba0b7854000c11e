"""SAM 2.1: the five parts, and what a tracker does with them slice by slice.

Source: Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos"; parameter names are
those of the published checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.config import SAM2Config
from etsam.sam2.image_encoder import ImageEncoder
from etsam.sam2.layers import MLP
from etsam.sam2.linear import Linear
from etsam.sam2.mask_decoder import Decoded, MaskDecoder
from etsam.sam2.memory import Memory, MemoryAttention, MemoryBank, MemoryEncoder
from etsam.sam2.positions import sine_line, sine_map
from etsam.sam2.prompt_encoder import PromptEncoder

NO_OBJECT_LOGIT = -1024.0
"""Logits of a frame whose object score is not positive (``NO_OBJ_SCORE`` in SAM 2)."""
MEMORY_SCALE, MEMORY_BIAS = 20.0, -10.0
"""Mask probabilities become memory-encoder input as ``20 p - 10``; mask prompts likewise, also as answers."""


class Features(NamedTuple):
    """Image features of a frame."""

    image: Tensor
    """(b, d_model, h, w) at the token stride."""
    high_res: list[Tensor]
    """(b, d_model / 8, 4 h, 4 w) and (b, d_model / 4, 2 h, 2 w) for the mask decoder."""


class Output(NamedTuple):
    """Answer for one frame."""

    logits: Tensor
    """(b, 1, 4 h, 4 w) at the patch stride."""
    pointer: Tensor
    """(b, d_model) object pointer."""
    object_score: Tensor
    """(b, 1)."""
    decoded: Decoded | None
    """All candidates, for training; None where a mask prompt was returned."""
    choice: Tensor | None = None
    """(b, candidates) how much of each candidate the logits are; None where changes do not settle."""


class SAM2(nn.Module):
    """The network; tracking state lives in a `MemoryBank` outside it."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        self.config = config
        d, m = config.d_model, config.memory_dim
        self.image_encoder = ImageEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_maskmem, 1, 1, m))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, d))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, d))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, d))
        self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, m))
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.obj_ptr_proj = MLP((d, d, d), 3)
        self.obj_ptr_tpos_proj = Linear(d, m)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Infer in ``dtype`` from now on, but for prompts and the mask decoder, which stay in float32.

        A few hundredths of the work, but what rounds there decides which of two candidates answers.
        """
        decoder = self.sam_mask_decoder
        exact = {*self.sam_prompt_encoder.modules(), *decoder.modules()}
        exact -= {decoder.conv_s0, decoder.conv_s1}  # they see what the image encoder sees
        for module in self.modules():
            kind = torch.float32 if module in exact else dtype
            for values in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                values.data = values.data.to(kind)

    def encode(self, frames: Tensor) -> Features:
        """Frames (b, in_channels, h, w) -> features; the expensive part, free of memory."""
        decoder = self.sam_mask_decoder
        fine, middle, image = self.image_encoder(frames, (decoder.conv_s0, decoder.conv_s1))
        return Features(image, [fine, middle])

    def condition(self, image: Tensor, bank: MemoryBank, z: int, length: int) -> Tensor:
        """Read the bank for slice ``z`` of a volume of ``length`` slices.

        All conditioning memories are attended to (later ones too), pointers only from the past; published
        networks attend to those of later conditioning slices as well while they train, as SAM 2 does.
        An empty bank adds the "no memory" embedding.
        """
        if not bank.conditioning and not bank.spatial:
            return image + self.no_mem_embed.view(1, -1, 1, 1)
        last = self.config.num_maskmem - 1
        spatial = [(last, memory.spatial) for memory in bank.conditioning.values()]
        spatial += [(z - past - 1, tokens) for past, tokens in bank.spatial if 0 < z - past <= last]
        values = torch.cat([tokens for _, tokens in spatial], dim=1)
        place = self._memory_position(image)
        keys = torch.cat(
            [tokens + place + self.maskmem_tpos_enc[age, 0] for age, tokens in spatial], dim=1
        )
        pointer_values, pointer_keys = self._pointers(bank, z, length)
        memory = (
            torch.cat((keys, pointer_keys), dim=1),
            torch.cat((values, pointer_values), dim=1),
        )
        conditioned: Tensor = self.memory_attention(image, memory, pointer_values.shape[1])
        return conditioned

    def _memory_position(self, image: Tensor) -> Tensor:
        """Sine encoding of memory tokens, (1, n, memory_dim)."""
        position = sine_map(self.config.memory_dim, *image.shape[-2:], image.device)
        return self._pool(position.to(image.dtype))

    def _pool(self, maps: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, n, c) tokens, averaged over ``memory_pool`` squares."""
        if self.config.memory_pool > 1:
            maps = F.avg_pool2d(maps, self.config.memory_pool)
        return maps.flatten(2).transpose(1, 2)

    def _pointers(self, bank: MemoryBank, z: int, length: int) -> tuple[Tensor, Tensor]:
        """Object pointers, their ages signed, cut into tokens of ``memory_dim``: values and keys."""
        span = min(length, self.config.max_pointers) - 1
        later = self.training and self.config.trunk == "hiera"
        found = [(z - p, m.pointer) for p, m in bank.conditioning.items() if later or p <= z]
        found += [(z - p, pointer) for p, pointer in bank.pointers if 0 < z - p <= span]
        if not found:
            template = next(iter(bank.conditioning.values())).spatial
            return template[:, :0], template[:, :0]
        pointers = torch.stack([pointer for _, pointer in found], dim=1)
        ages = torch.tensor([age for age, _ in found], dtype=torch.float32, device=pointers.device)
        encoding = sine_line(ages / max(span, 1), self.config.d_model).to(pointers.dtype)
        places = self.obj_ptr_tpos_proj(encoding)
        parts = self.config.d_model // self.config.memory_dim
        values = torch.unflatten(pointers, -1, (parts, -1)).flatten(1, 2)
        return values, values + places.repeat_interleave(parts, dim=0)

    def decode(
        self,
        image: Tensor,
        features: Features,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        multimask: bool = True,
        before: Tensor | None = None,
    ) -> Output:
        """Decode conditioned features (b, d, h, w); of several candidates the best one answers.

        ``points`` are x, y in frame pixels (b, n, 2) and labels (b, n); ``mask`` is a dense
        prompt of logits (b, 1, ., .). ``before`` is the choice of the slice before, where a change
        takes several to settle (``SAM2Config.settling``).
        """
        stride = self.config.token_stride
        height, width = image.shape[-2:]
        size = (height * stride, width * stride)
        prompt = self.sam_prompt_encoder(size, len(image), points, mask)
        position = self.sam_prompt_encoder.pe_layer.grid(height, width)
        decoded = self.sam_mask_decoder(image, position, prompt, features.high_res, multimask)
        best = decoded.quality.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        present = decoded.object_score > 0
        choice = None
        masks = decoded.masks[rows, best][:, None].float()
        if multimask and self.config.settling > 1:
            choice = F.one_hot(best, decoded.quality.shape[1]).float()
            if before is not None:
                choice = before.lerp(choice, 1 / self.config.settling)
                masks = (choice[..., None, None] * decoded.masks).sum(dim=1, keepdim=True)
        logits = torch.where(present[..., None, None], masks, NO_OBJECT_LOGIT)
        chosen = decoded.tokens[rows, best].to(self.no_obj_ptr.dtype)
        pointer = torch.where(present, self.obj_ptr_proj(chosen), self.no_obj_ptr)
        return Output(logits, pointer, decoded.object_score, decoded, choice)

    def answer_with_mask(self, features: Features, mask: Tensor) -> Output:
        """Return a binary mask prompt (b, 1, h, w), in frame pixels, as the frame's own answer.

        Its pointer says "no object" when the mask is empty or the decoder, fed with it, says so.
        """
        mask = mask.to(features.image.dtype)
        full = mask.float() * MEMORY_SCALE + MEMORY_BIAS
        stride = self.config.patch_stride
        size = (full.shape[-2] // stride, full.shape[-1] // stride)
        logits = F.interpolate(full, size, mode="bilinear", antialias=True)
        own = self.decode(
            features.image, features, mask=self.mask_downsample(mask), multimask=False
        )
        present = mask.flatten(1).any(dim=1, keepdim=True)
        pointer = torch.where(present, own.pointer, self.no_obj_ptr)
        score = present.to(mask.dtype) * MEMORY_SCALE + MEMORY_BIAS
        return Output(logits, pointer, score, None)

    def remember(self, features: Features, output: Output, *, binary: bool = False) -> Memory:
        """Encode a frame and its answer into memory.

        ``binary`` thresholds the mask first, as SAM 2 does on frames with a prompt.
        """
        grid = features.image.shape[-2:]
        stride = self.config.token_stride
        size = (grid[0] * stride, grid[1] * stride)
        full = F.interpolate(output.logits.float(), size, mode="bilinear")
        probability = (full > 0).float() if binary else full.sigmoid()
        mask = (probability * MEMORY_SCALE + MEMORY_BIAS).to(features.image.dtype)
        spatial = self.memory_encoder(features.image, mask)
        absent = (output.object_score <= 0).to(spatial.dtype)
        spatial = spatial + absent[..., None, None] * self.no_obj_embed_spatial[..., None, None]
        return Memory(self._pool(spatial), output.pointer)
