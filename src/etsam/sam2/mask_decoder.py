"""The two-way mask decoder of SAM 2: masks, their quality, object score and pointer tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.sam2.config import SAM2Config
from etsam.sam2.layers import MLP, Attention, LayerNorm2d, Tokens

MASKS = 4
"""One mask for clear prompts, then three candidates for ambiguous or absent prompts."""

KEY_GAP = 5.0
"""By how much the scores of keys that matter exceed the others', about (`experiments/LOG.md`)."""


class ImageAttention(Attention):
    """Tokens attend to the image, as sharply over large frames as over those that training had.

    The weight of all that does not matter grows with the number of keys, which scores that grow with its
    logarithm make up for.
    """

    def __init__(self, config: SAM2Config) -> None:
        super().__init__(config.d_model, config.decoder_heads, config.d_model // 2)
        self.learnt = config.decoder_tokens or math.inf

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sharpness = 1 + math.log(max(1, k.shape[1] / self.learnt)) / KEY_GAP
        return self.mix(self.q_proj(q) * sharpness, self.k_proj(k), self.v_proj(v))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, config: SAM2Config, first: bool) -> None:
        super().__init__()
        width, heads = config.d_model, config.decoder_heads
        self.first = first
        self.self_attn = Attention(width, heads, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = ImageAttention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP((width, config.decoder_feed_forward, width), 2)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, width // 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        image_key = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, image_key, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image_key, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        width = config.d_model
        self.layers = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = ImageAttention(config)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class Decoded(NamedTuple):
    """What the decoder says of one frame, for each of its mask candidates."""

    masks: Tensor
    """(b, m, h, w) logits at the patch stride."""
    quality: Tensor
    """(b, m) predicted intersection over union."""
    tokens: Tensor
    """(b, m, d) output tokens, from which object pointers are made."""
    object_score: Tensor
    """(b, 1) logit that the object is in the frame."""


class MaskDecoder(nn.Module):
    """Image embedding, prompt tokens and high-resolution features -> `Decoded`."""

    def __init__(self, config: SAM2Config) -> None:
        super().__init__()
        width = config.d_model
        self.transformer = TwoWayTransformer(config)
        self.iou_token = Tokens(1, width)
        self.mask_tokens = Tokens(MASKS, width)
        self.obj_score_token = Tokens(1, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP((width, width, width // 8), 3) for _ in range(MASKS)
        )
        self.iou_prediction_head = MLP((width, 256, MASKS), 3)
        self.pred_obj_score_head = MLP((width, width, 1), 3)

    def upscale(self, image: Tensor, high_res: list[Tensor]) -> Tensor:
        """(b, d, h, w) -> (b, d / 8, 4 h, 4 w), adding the finer features on the way."""
        up1, norm, _, up2, _ = self.output_upscaling
        fine, middle = high_res
        x = F.gelu(norm(up1(image) + middle))
        return F.gelu(up2(x) + fine)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        prompt: tuple[Tensor, Tensor],
        high_res: list[Tensor],
        multimask: bool,
    ) -> Decoded:
        sparse, dense = prompt
        kind = self.iou_token.weight.dtype
        if image.dtype != kind and not torch.is_autocast_enabled(image.device.type):
            image, sparse, dense = image.to(kind), sparse.to(kind), dense.to(kind)
            high_res = [features.to(kind) for features in high_res]
        own = torch.cat(
            (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        )
        tokens = torch.cat((own.expand(len(image), -1, -1), sparse), dim=1)
        grid = image.shape[-2:]
        source = (image + dense).flatten(2).transpose(1, 2)
        position = image_pe.flatten(2).transpose(1, 2)
        tokens, source = self.transformer(tokens, source, position)
        upscaled = self.upscale(torch.unflatten(source.transpose(1, 2), 2, grid), high_res)
        chosen = range(1, MASKS) if multimask else range(1)
        mask_tokens = tokens[:, 2 : 2 + MASKS][:, chosen.start : chosen.stop]
        weights = torch.stack(
            [self.output_hypernetworks_mlps[i](mask_tokens[:, i - chosen.start]) for i in chosen],
            dim=1,
        )
        masks = torch.unflatten(weights @ upscaled.flatten(2), 2, upscaled.shape[-2:])
        quality = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        return Decoded(
            masks,
            quality[:, chosen.start : chosen.stop],
            mask_tokens,
            self.pred_obj_score_head(tokens[:, 0]),
        )
