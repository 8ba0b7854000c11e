"""What each frame of a training clip is answered from: whose memories, which clicks, which answer so far."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from etsam import clip_loss
from etsam.clip_loss import ClipLoss, run_clips
from etsam.losses import LossWeights, frame_loss
from etsam.training.prompting import LONG, Plan
from test_train import clips
from tiny_training import TINY, network

CLICKS = Plan("points", (0, 1), frozenset({0, 3}), (True, False))


class Calls(list[tuple[tuple[Any, ...], dict[str, Any], Any]]):
    """Arguments and result of each call of a function of an object."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        super().__init__()
        self.own = getattr(owner, name)
        patch.setattr(owner, name, self.call)

    def call(self, *arguments: Any, **named: Any) -> Any:
        result = self.own(*arguments, **named)
        self.append((arguments, named, result))
        return result


@pytest.mark.parametrize(
    ("plan", "places", "known", "binary"),
    [
        (CLICKS, [0, 1, 2, 3, 4], [[], [], [0, 1], [0, 1], [0, 1, 3]], [False] * 5),
        (Plan("mask", away=30), [0, 1, 2, 3], [[-30]] * 4, [True, *[False] * 4]),
    ],
    ids=["clicks", "mask"],
)
def test_frames_know_the_conditioned_and_the_corrected_ones(
    plan: Plan,
    places: list[int],
    known: list[list[int]],
    binary: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network(TINY).eval()
    asked, kept = (Calls(monkeypatch, model, name) for name in ("condition", "remember"))
    with torch.no_grad():
        list(run_clips(model, clips(frames=5), plan, anchored=plan.kind == "mask"))
    assert [arguments[2:] for arguments, _, _ in asked] == [(place, LONG) for place in places]
    assert [sorted(arguments[1].conditioning) for arguments, _, _ in asked] == known
    assert [named["binary"] for _, named, _ in kept] == binary


def test_clicks_go_back_with_the_answer_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(TINY).eval()
    monkeypatch.setattr(clip_loss, "MASK_LIMIT", 0.01)
    decoded, drawn = (
        Calls(monkeypatch, model, "decode"),
        Calls(monkeypatch, clip_loss, "sample_clicks"),
    )
    with torch.no_grad():
        list(run_clips(model, clips(frames=5), CLICKS, anchored=False))
    masks = [named["mask"] for _, named, _ in decoded]
    logits = [result.logits for _, _, result in decoded]
    assert [mask is None for mask in masks] == [
        True,
        False,
        False,
        True,
        True,
        True,
        *[False] * 2,
        True,
    ]
    for after in (1, 2, 6, 7):
        assert torch.equal(masks[after], logits[after - 1].clamp(-0.01, 0.01))
    found = [arguments[1] for arguments, _, _ in drawn]
    assert [mask is None for mask in found] == [True, True, False, True, True, False]
    for mask, answer in ((found[2], logits[1]), (found[5], logits[6])):
        assert torch.equal(mask, interpolate(answer, (64, 64), mode="bilinear")[:, 0] > 0)


def test_the_loss_of_clips_is_the_mean_over_their_answers() -> None:
    model, weights = network(TINY).eval(), LossWeights(spread=0.3)
    with torch.no_grad():
        given = clips(frames=5)
        answers = list(run_clips(model, given, CLICKS, anchored=False))
        losses = [
            frame_loss(output.decoded, given.labels[:, index], weights)  # type: ignore[arg-type]
            for index, output in answers
        ]
        found = ClipLoss(model, weights, anchored=False)(clips(frames=5), CLICKS)
    assert len(losses) == 9
    torch.testing.assert_close(found, torch.stack(losses).mean())
