"""Training losses of SAM 2: focal, dice, predicted IoU and object score, with ignored voxels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from etsam.metrics import IGNORE
from etsam.sam2.mask_decoder import Decoded


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms (paper, section 4.3: those of SAM 2).

    ``spread`` is the share of the mask loss taken as the mean over all candidates instead of the
    best one; SAM 2 uses 0, a network that starts from nothing wants some. ``absent`` is the share
    of the mask loss kept where a frame has no membrane: SAM 2 uses 0 and leaves the answer there
    to the object score alone, but a tomogram's empty slices must stay clean. ``smooth`` pixels are
    added to the areas that the Dice term compares. With SAM 2's one pixel an empty frame costs the
    whole of that term as soon as anything is claimed, which teaches to answer faint frames with
    nothing at all; with some hundreds it costs as much as is claimed.
    """

    focal: float = 20.0
    dice: float = 1.0
    quality: float = 1.0
    object_score: float = 1.0
    spread: float = 0.0
    absent: float = 0.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth: float = 1.0


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), averaged over valid pixels: (b, m, h, w) -> (b, m)."""
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    agreement = probability * target + (1 - probability) * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    loss = balance * cross * (1 - agreement) ** gamma * valid
    return loss.sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient over valid pixels: (b, m, h, w) -> (b, m).

    ``smooth`` pixels are added to numerator and denominator.
    """
    probability = logits.sigmoid() * valid
    target = target * valid
    overlap = (probability * target).sum((-2, -1))
    areas = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * overlap + smooth) / (areas + smooth)


def candidate_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Intersection over union of each thresholded candidate: (b, m, h, w) -> (b, m)."""
    found = (logits > 0) & (valid > 0)
    truth = (target > 0) & (valid > 0)
    union = (found | truth).sum((-2, -1)).clamp(min=1)
    return (found & truth).sum((-2, -1)) / union


def frame_loss(decoded: Decoded, labels: Tensor, weights: LossWeights) -> Tensor:
    """Loss of one frame of each clip.

    Parameters
    ----------
    decoded
        The decoder's candidates, (b, m, h / s, w / s).
    labels
        (b, h, w) at frame resolution: 1 membrane, 0 background, -1 not annotated. Where some are -1 and
        none is 1, nobody knows whether the frame has membrane: that teaches neither object score nor
        predicted IoU.

    Returns
    -------
    loss
        Mean over the batch, a scalar.
    """
    logits = F.interpolate(decoded.masks.float(), labels.shape[-2:], mode="bilinear")
    target = (labels == 1).float()[:, None].expand_as(logits)
    valid = (labels != IGNORE).float()[:, None].expand_as(logits)
    present = (labels == 1).flatten(1).any(1)
    known = present | (labels != IGNORE).flatten(1).all(1)
    mask = weights.focal * focal_loss(
        logits, target, valid, weights.focal_alpha, weights.focal_gamma
    ) + weights.dice * dice_loss(logits, target, valid, weights.smooth)
    best = mask.detach().argmin(dim=1)
    chosen = mask.gather(1, best[:, None])[:, 0]
    mask_loss = (1 - weights.spread) * chosen + weights.spread * mask.mean(1)
    with torch.no_grad():
        iou = candidate_iou(logits, target, valid)
    quality = (decoded.quality.float() - iou).abs().mean(1)
    score = F.binary_cross_entropy_with_logits(
        decoded.object_score[:, 0].float(), present.float(), reduction="none"
    )
    shown = torch.where(present, 1.0, weights.absent)
    judged = known * (shown * weights.quality * quality + weights.object_score * score)
    return (shown * mask_loss + judged).mean()
