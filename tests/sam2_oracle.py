"""The oracle for `etsam.sam2`: ``transformers.Sam2VideoModel`` with the same weights.

Only the tests use it. Where transformers and the published implementation (facebookresearch/sam2)
differ, `Oracle` follows the published one; `test_sam2_published` shows on a run of it that this is
so.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoInferenceSession,
    Sam2VideoModel,
)

from etsam.sam2 import SAM2, SAM2Config

RENAMES = (
    # whole parts
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    # trunk
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    # prompt encoder
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    # mask decoder
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    # memory encoder
    (r"pix_feat_proj\.", "feature_projection."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"\.fuser\.", ".memory_fuser."),
    (r"\.gamma$", ".scale"),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"(memory_fuser\.layers\.\d)\.norm\.", r"\1.layer_norm."),
    # norms and attention everywhere
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"\.out_proj\.", ".o_proj."),
    # MLPs of two layers, then of three
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"(_proj|_head|_mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(_proj|_head|_mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
    (r"(_proj|_head|_mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
)
"""Ordered rules from the names of the published checkpoints to those of transformers."""


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of our network (Meta's names) to those of transformers."""
    out: dict[str, Tensor] = {}
    points: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".point_embeddings." in name:
            points[name] = value
            continue
        new = name
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        if found := re.match(r"memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(.*)", new):
            new = _downsampler(int(found[1]), found[2], state)
        out[new] = value
    out["prompt_encoder.point_embed.weight"] = torch.cat([points[k] for k in sorted(points)])
    shared = "shared_embedding.positional_embedding"
    out["shared_image_embedding.positional_embedding"] = out[f"prompt_encoder.{shared}"]
    return out


def _downsampler(index: int, rest: str, state: dict[str, Tensor]) -> str:
    """Convolution, norm and GELU take turns; the last convolution stands alone."""
    prefix = "memory_encoder.mask_downsampler"
    last = max(int(k.split(".")[3]) for k in state if k.startswith(f"{prefix}.encoder."))
    if index == last:
        return f"{prefix}.final_conv.{rest}"
    return f"{prefix}.layers.{index // 3}.{('conv', 'layer_norm')[index % 3]}.{rest}"


def oracle_config(config: SAM2Config) -> Sam2VideoConfig:
    """Say the same sizes in transformers' words."""
    size, stride, d = config.image_size, config.patch_stride, config.d_model
    grids = [[size // (stride * k)] * 2 for k in (1, 2, 4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "image_size": [size, size],
        "patch_kernel_size": [config.patch_kernel] * 2,
        "patch_stride": [stride] * 2,
        "patch_padding": [config.patch_kernel // 2] * 2,
        "window_positional_embedding_background_size": list(config.pos_embed_size),
        "blocks_per_stage": list(config.stages),
        "embed_dim_per_stage": list(config.level_channels),
        "num_attention_heads_per_stage": [config.num_heads * 2**level for level in range(4)],
        "window_size_per_stage": list(config.window_spec),
        "global_attention_blocks": list(config.global_blocks),
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": list(reversed(config.level_channels)),
        "backbone_feature_sizes": grids,
        "fpn_hidden_size": d,
    }
    sizes: dict[str, Any] = {
        "vision_config": vision,
        "prompt_encoder_config": {
            "hidden_size": d,
            "image_size": size,
            "patch_size": config.token_stride,
        },
        "mask_decoder_config": {
            "hidden_size": d,
            "mlp_dim": config.decoder_feed_forward,
            "num_attention_heads": config.decoder_heads,
            "dynamic_multimask_via_stability": False,  # never used on tracked slices
        },
        "image_size": size,
        "num_maskmem": config.num_maskmem,
        "max_object_pointers_in_encoder": config.max_pointers,
        "memory_attention_hidden_size": d,
        "memory_attention_num_layers": config.memory_layers,
        "memory_attention_feed_forward_hidden_size": config.memory_feed_forward,
        "memory_attention_rope_feat_sizes": grids[2],
        "memory_encoder_hidden_size": d,
        "memory_encoder_output_channels": config.memory_dim,
        "mask_downsampler_embed_dim": d,
        "memory_fuser_embed_dim": d,
        "memory_fuser_intermediate_dim": 4 * d,
    }
    return Sam2VideoConfig(**sizes)


class Oracle(Sam2VideoModel):
    """transformers' network, with mask prompts as the published implementation treats them."""

    def _use_mask_as_output(
        self, backbone_features: Tensor, high_res_features: list[Tensor], mask_inputs: Tensor
    ) -> Any:
        """Answer with the mask.

        The published code makes the pointer of a mask prompt from the single-mask token (here:
        from the best of three), and remembers the mask after its way through the low-resolution
        logits (here: as it is).
        """
        out = super()._use_mask_as_output(backbone_features, high_res_features, mask_inputs)
        single = self._single_frame_forward(
            input_masks=self.mask_downsample(mask_inputs),
            image_embeddings=[*high_res_features, backbone_features],
            multimask_output=False,
        )
        out.object_pointer = (
            single.object_pointer if mask_inputs.any() else self.no_object_pointer[None]
        )
        size = (self.image_size, self.image_size)
        out.high_res_masks = F.interpolate(out.pred_masks, size, mode="bilinear")
        return out


def make_oracle(model: SAM2) -> Oracle:
    """Build the oracle with the weights of ``model``; strict, so that no parameter is left over."""
    oracle = Oracle(oracle_config(model.config))
    oracle.load_state_dict(translate(model.state_dict()), strict=True)
    return oracle.eval().requires_grad_(False)


def lively(config: SAM2Config, *, seed: int = 0, object_bias: float = 5.0) -> SAM2:
    """Network with random weights none of whose parts is silent.

    Initial values like layer scales of 1e-6 or zero embeddings would hide what they multiply; a
    negative object score would hide the masks.
    """
    random = torch.Generator().manual_seed(seed)
    model = SAM2(config).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=random)
        if value.ndim > 1 and not re.search(r"embed|tpos_enc|ptr$|token|pos_enc|matrix", name):
            value.copy_(noise / value[0].numel() ** 0.5)  # linear and convolution
        elif name.endswith("patch_embed.proj.weight"):
            value.copy_(noise / value[0].numel() ** 0.5)
        elif value.ndim > 1:
            value.copy_(0.5 * noise)
        elif name.endswith("weight"):
            value.copy_(1 + 0.1 * noise)  # normalisation
        elif name.endswith("gamma"):
            value.copy_(0.5 + 0.1 * noise)
        else:
            value.copy_(0.1 * noise)
        if name.startswith("memory_attention") and name.endswith("q_proj.weight"):
            value.mul_(3)  # choose among memories rather than average them
    model.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(object_bias)
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference in units of the largest value expected."""
    assert ours.numel() == theirs.numel(), (ours.shape, theirs.shape)
    theirs = theirs.reshape(ours.shape).float()
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


def new_session(frames: Tensor) -> Sam2VideoInferenceSession:
    """Session over frames (n, c, h, w) with one object, without prompts."""
    height, width = frames.shape[-2:]
    session = Sam2VideoInferenceSession(frames, height, width, dtype=frames.dtype)
    session.obj_id_to_idx(1)
    return session


def propagate(
    oracle: Oracle, frames: Tensor, prompts: dict[int, Tensor]
) -> tuple[list[Tensor], Sam2VideoInferenceSession]:
    """Condition on all mask prompts, then track from the first frame; logits (h, w) per frame."""
    session = new_session(frames)
    for z, mask in prompts.items():
        session.add_mask_inputs(0, z, mask[None, None].float())
        session.obj_with_new_inputs.append(1)
        oracle(session, frame_idx=z)
    answers = [
        out.pred_masks[0, 0].clone()
        for out in oracle.propagate_in_video_iterator(session, start_frame_idx=0)
    ]
    return answers, session
