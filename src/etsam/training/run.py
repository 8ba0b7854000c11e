"""A run: networks and optimiser, as they are saved and taken up again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from etsam.sam2 import SAM2, SAM2Config, save_checkpoint
from etsam.sam2.checkpoint import written_whole
from etsam.sam2.unreadable import UNREADABLE, check_archive, refuse_cut, why_unreadable
from etsam.training.journal import LOG_NAME
from etsam.training.optimiser import make_optimiser
from etsam.training.options import TrainOptions
from etsam.training.start import initialise, start_from


@dataclass
class Run:
    """Everything that changes while training, and is saved to go on later."""

    model: SAM2
    average: SAM2
    optimiser: torch.optim.Optimizer
    start: str | None = None  # SHA-256 of the weights it began from
    step: int = 0
    losses: list[float] = field(default_factory=list)
    saved: int = 0  # the last step that was

    def state(self) -> dict[str, Any]:
        """All state, as plain types and tensors that ``weights_only`` loading accepts.

        Clips and prompts depend on seed and step alone.
        """
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {
            "step": self.step,
            "start": self.start,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": cuda,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state of `state`."""
        self.step, self.losses = state["step"], state["losses"]
        self.saved = self.step
        self.start = state.get("start", self.start)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])


def start_run(options: TrainOptions, device: torch.device) -> Run:
    """Networks and optimiser as the schedule begins, or as they were saved."""
    config = _config(options)
    model = _laid_out(SAM2(config).to(device))
    initialise(model)
    average = _laid_out(SAM2(config).to(device))
    if options.start is not None:
        start_from(model, options.start, options.spec)
    average.load_state_dict(model.state_dict())
    average.eval().requires_grad_(False)
    run = Run(model, average, make_optimiser(model, options.schedule), options.start_sum)
    if options.state.is_file():
        state = read_state(options)
        _tell_changes(state.get("choices", {}) | state.get("circumstances", {}), options)
        run.restore(state)
    return run


def _config(options: TrainOptions) -> SAM2Config:
    """Sizes of the network that takes the frames of the stage."""
    channels = options.spec.channels(feedback=options.stage == 2)
    return replace(options.config, in_channels=channels)


def _laid_out(model: SAM2) -> SAM2:
    """Keep kernels of convolutions as these compute fastest, and as their gradients come."""
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and max(part.kernel_size) > 1:
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def refuse_foreign(options: TrainOptions) -> None:
    """Keep files under the names of a run's in a folder that no run has been in.

    Raises
    ------
    FileExistsError
        There is one.
    """
    signs = (
        options.state,
        options.sign,
        options.lock,
    )  # earlier versions left no sign but the lock
    if any(path.exists() for path in signs):
        return
    for path in (options.weights, options.output / LOG_NAME):
        if path.exists():
            raise FileExistsError(
                f"{path} is there already and of no run: move it, or choose another --output"
            )


def read_state(options: TrainOptions) -> dict[str, Any]:
    """Read the state a run was saved in.

    Raises
    ------
    ValueError
        It cannot be read, is damaged, lacks something, holds weights that are not finite, or is that of
        a run of another network, stage, seed or start.
    """
    try:
        refuse_cut(options.state)
        check_archive(options.state)
        state: dict[str, Any] = torch.load(options.state, map_location="cpu", weights_only=True)
        made_with = state["made_with"]
    except UNREADABLE as wrong:
        raise ValueError(_no_state(options, why_unreadable(options.state, wrong))) from None
    if made_with != options.identity:
        raise ValueError(
            f"{options.output} holds a run of another network, stage or seed: choose another "
            "--output, or remove its state.pt"
        )
    if options.start_sum not in (None, state.get("start", options.start_sum)):
        raise ValueError(
            f"{options.output} holds a run that began from other weights than {options.start}: choose "
            "another --output, or remove its state.pt"
        )
    if fault := _fault(state, options):
        raise ValueError(_no_state(options, fault))
    return state


def _no_state(options: TrainOptions, why: str) -> str:
    """The line that refuses a state."""
    return f"{options.state} cannot be read ({why}): remove it to begin anew"


def _fault(state: dict[str, Any], options: TrainOptions) -> str:
    """In a few words what keeps a state from being taken up; empty: nothing.

    It is tried on networks without storage, so that no device can be what fails.
    """
    with torch.device("meta"):
        model = SAM2(_config(options))
    try:
        for part in (state["average"], state["model"]):
            # a plain dict: to one of torch's it would note that whoever loads it later shares it too
            model.load_state_dict(dict(part), assign=True)
            if not all(torch.isfinite(tensor).all() for tensor in part.values()):
                return "its weights are NaN or infinite"
        make_optimiser(model, options.schedule).load_state_dict(state["optimiser"])
        torch.Generator().set_state(state["random"])
        losses = state["losses"]
        fits = (
            isinstance(state["step"], int)
            and state["step"] >= 0
            and isinstance(losses, list)
            and all(isinstance(loss, float) for loss in losses)
            and isinstance(state["random_cuda"], torch.Tensor | None)
            and all(isinstance(state.get(of, {}), dict) for of in ("choices", "circumstances"))
        )
    except UNREADABLE:
        fits = False
    return "" if fits else "an entry is missing, or not that of such a run"


def _tell_changes(before: dict[str, Any], options: TrainOptions) -> None:
    """Warn of what was chosen otherwise when the run was saved."""
    now = options.choices | options.circumstances
    old, new = (choices.get("schedule", {}) | choices for choices in (before, now))
    changed = [
        f"{name} {old[name]!r}, now {value!r}"
        for name, value in new.items()
        if name not in ("schedule", "steps") and name in old and old[name] != value
    ]
    if changed:
        warnings.warn(
            f"the run in {options.output} was at work with {'; '.join(changed)}: it goes on as is said now",
            stacklevel=4,
        )


def save_run(run: Run, options: TrainOptions) -> None:
    """Write weights and state; weights first, so that a state that has reached the end has its weights.

    Raises
    ------
    OSError
        They cannot be written; what was saved before is still there.
    """
    done = {"stage": options.stage, "step": run.step, "seed": options.seed}
    metadata = {"frame_spec": options.spec.to_dict(), "provenance": done | options.choices}
    save_checkpoint(options.weights, run.average, metadata, half=False)
    state = run.state() | {
        "made_with": options.identity,
        "choices": options.choices,
        "circumstances": options.circumstances,
    }
    with written_whole(options.state) as partial, partial.open("wb") as file:
        torch.save(state, file)
    run.saved = run.step
