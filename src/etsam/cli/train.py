"""``etsam train``: train one stage of the bundled network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.progress import StageProgress


@click.command(cls=VerbCommand, short_help="Train a stage of the bundled network.")
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the run."
)
@click.option("--stage", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option(
    "--validation",
    type=click.Path(path_type=Path, file_okay=False),
    help="Pairs that are never trained on; their Dice is logged.",
)
@click.option(
    "--start", type=click.Path(path_type=Path), help="Checkpoint (.safetensors) to start from."
)
@click.option(
    "--stage1-checkpoint",
    type=click.Path(path_type=Path),
    help="For --stage 2: run this stage 1 over the data first, where its logits are missing.",
)
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Clips.")
@click.option("--frames", type=click.IntRange(min=1), default=4, show_default=True, help="A clip.")
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(min=32),
    multiple=True,
    default=(128, 192, 256),
    show_default=True,
    help="Side of a clip in pixels; several are drawn from.",
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda:N or mps.")
@click.option("--float32", is_flag=True, help="Compute in float32 instead of bfloat16.")
@click.option("--seed", type=int, default=0, show_default=True)
def train(params: dict[str, Any]) -> None:
    """Train one stage on the folder DATA of pairs NAME.mrc and NAME_membrane.mrc.

    Masks hold 1 membrane, 0 not, -1 not annotated, as `etsam simulate` writes them. The run's folder
    gets stage1.safetensors or stage2.safetensors, log.jsonl and state.pt; the same command goes on
    where it stopped. Stage 2 also needs stage-1 logits, NAME_stage1.npy, beside each tomogram:
    --stage1-checkpoint makes them.
    """
    from etsam.train import Schedule, TrainOptions
    from etsam.train import train as run_training

    options = TrainOptions(
        data=params["data"],
        output=params["output"],
        stage=params["stage"],
        validation=params["validation"],
        schedule=Schedule(
            steps=params["steps"], batch=params["batch"], learning_rate=params["learning_rate"]
        ),
        frames=params["frames"],
        sizes=params["sizes"],
        device=params["device"],
        bfloat16=not params["float32"],
        seed=params["seed"],
        every=params["save_every"],
        start=params["start"],
    )
    if params["stage"] == 2 and params["stage1_checkpoint"] is not None:
        _make_stage1_logits(params)
    click.echo(run_training(options, _report))


def _make_stage1_logits(params: dict[str, Any]) -> None:
    from etsam.feedback import write_stage1_logits

    for folder in filter(None, (params["data"], params["validation"])):
        with StageProgress(unit="tomograms") as progress:
            write_stage1_logits(
                folder,
                params["stage1_checkpoint"],
                device=params["device"],
                progress=partial(progress, f"stage-1 logits in {folder}"),
            )


def _report(entry: dict[str, Any]) -> None:
    """One line of figures on stderr."""
    figures = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in entry.items()
    )
    click.echo("  ".join(figures), err=True)
