"""``etsam train``: train one stage, of the bundled network or of SAM 2.1."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand, is_chosen
from etsam.cli.options import files_argument, finite, parse_triple
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress
from etsam.cli.simulate import PRESETS

if TYPE_CHECKING:
    from etsam.frames import FrameSpec
    from etsam.train import Fresh, TrainOptions
    from etsam.training.parallel import Team

FOLDER = FilePath(file_okay=False)


@click.command(cls=VerbCommand, short_help="Train or fine-tune a stage.")
@files_argument("data", kind=FOLDER, required=False)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--stage", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option(
    "--validation",
    type=FOLDER,
    help="Pairs that are never trained on; their Dice is logged.",
)
@click.option(
    "--start",
    help="Where to start: a checkpoint (.pt, .safetensors), a model such as compact or etsam-v1, or "
    "sam2.1-base-plus (-tiny, -small, -large).  [default: from nothing]",
)
@click.option(
    "--stage1-checkpoint",
    type=FilePath(),
    help="For --stage 2: run this stage 1 over the data first, where its logits are missing.",
)
@click.option(
    "--weight",
    "weights",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    callback=finite,
    help="Share of clips from each folder, in the same order.  [default: its number of pairs]",
)
@click.option(
    "--simulate",
    "share",
    type=click.FloatRange(0, 1),
    default=0.0,
    callback=finite,
    help="Share of clips from tomograms simulated meanwhile.",
)
@click.option("--simulate-preset", type=click.Choice(PRESETS), default="any", show_default=True)
@click.option("--simulate-shape", default="64,256,256", show_default=True, help="Z,Y,X in voxels.")
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), help="Clips.  [default: 4; SAM 2.1: 1]")
@click.option(
    "--frames", type=click.IntRange(min=1), help="Slices of a clip.  [default: 4; SAM 2.1: 22]"
)
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(min=32),
    multiple=True,
    help="Side of a clip in pixels; several are drawn from.  [default: 128, 192, 256; SAM 2.1: 1024]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    help="[default: 1e-3; from a compact checkpoint of the same stage: 1e-4; SAM 2.1: 5e-6, and 3e-6 "
    "for the image encoder]",
)
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option(
    "--checkpointing/--no-checkpointing",
    default=None,
    help="Gradient checkpointing: less memory, more time.  [default: for SAM 2.1]",
)
@click.option(
    "--memory-gb",
    type=click.FloatRange(min=0),
    default=4.0,
    callback=finite,
    show_default=True,
    help="Slices kept in memory.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--float32", is_flag=True, help="Compute in float32 even where the hardware has bfloat16."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
def train(params: dict[str, Any]) -> None:
    """Train one stage on folders DATA of pairs NAME.mrc and NAME_membrane.mrc.

    Masks hold 1 membrane, 0 not, -1 not annotated, as `etsam simulate` writes them; OME-Zarr and
    folders of the CryoET Data Portal and of `etsam download` are read too. The run's folder gets
    stage1.safetensors or stage2.safetensors, log.jsonl, pictures and state.pt; the same command goes
    on where it stopped.
    Stage 2 also needs stage-1 logits, NAME_stage1.npy, beside each tomogram: --stage1-checkpoint
    makes them. On several GPUs: torchrun --no-python --nproc-per-node 4 etsam train ...
    """
    options = _options(params)

    from etsam.train import train as run_training
    from etsam.training.parallel import join
    from etsam.training.run import read_state, refuse_foreign

    with join(params["device"]) as team:
        if params["stage"] == 2 and params["stage1_checkpoint"] is not None:
            refuse_foreign(options)  # before hours of work on logits
            if options.state.is_file():
                read_state(options)
            _make_stage1_logits(params, options.spec.feedback_step, team)
        weights = run_training(options, _report)
    if team.leads:
        click.echo(weights)


def _options(params: dict[str, Any]) -> TrainOptions:
    """What was asked for, over what the network's regime says."""
    _refuse_idle(params)
    weights = params["weights"] or (None,) * len(params["data"])
    if len(weights) != len(params["data"]):
        raise ValueError(
            f"{len(weights)} --weight for {len(params['data'])} folders: give one for each"
        )
    if not params["data"] and params["share"] < 1:
        given = f"with --simulate {params['share']:g} alone" if params["share"] else "as it stands"
        raise ValueError(f"nothing to train on {given}: name folders of pairs, or use --simulate 1")

    from dataclasses import replace

    from etsam.train import Source, TrainOptions, from_checkpoint

    sources = [Source(*pair) for pair in zip(params["data"], weights, strict=True)]
    options = TrainOptions(
        data=sources,
        output=params["output"],
        stage=params["stage"],
        validation=params["validation"],
        memory_gb=params["memory_gb"],
        device=params["device"],
        dtype="float32" if params["float32"] else "auto",
        seed=params["seed"],
        every=params["save_every"],
        fresh=_fresh(params),
    )
    if params["start"] is not None:
        options = from_checkpoint(options, _start(params))
    asked = {
        "frames": params["frames"],
        "sizes": params["sizes"] or None,
        "spec": _spec(options, params["sizes"]),
        "checkpointing": params["checkpointing"],
    }
    timing = {
        "steps": params["steps"],
        "batch": params["batch"],
        "learning_rate": params["learning_rate"],
    }
    schedule = replace(options.schedule, **_given(timing))
    if params["learning_rate"] is not None:
        # the image encoder keeps its share
        scale = schedule.learning_rate / options.schedule.learning_rate
        encoder = options.schedule.encoder_learning_rate
        own = None if encoder is None else encoder * scale
        schedule = replace(schedule, encoder_learning_rate=own)
    return replace(options, schedule=schedule, **_given(asked))


def _refuse_idle(params: dict[str, Any]) -> None:
    """Refuse options that play no role beside the others, and folders that are given twice to train on.

    Raises
    ------
    click.UsageError
        There is one.
    """
    for name in ("simulate_preset", "simulate_shape"):
        if is_chosen(name) and not params["share"]:
            raise click.UsageError(f"--{name.replace('_', '-')} is for --simulate SHARE")
    if params["stage"] == 1 and params["stage1_checkpoint"] is not None:
        raise click.UsageError("--stage1-checkpoint is for --stage 2; --start is where to begin")
    if params["data"] and params["share"] == 1:
        raise click.UsageError("--simulate 1 leaves no clip for the folders: give a smaller share")
    places = [folder.resolve() for folder in params["data"]]
    if len(set(places)) < len(places):
        raise click.UsageError("a folder is given twice: give it once, and --weight")


def _spec(options: TrainOptions, sizes: tuple[int, ...]) -> FrameSpec:
    """The frames of the network; square ones get the size asked for."""
    if options.spec.size == "native" or not sizes:
        return options.spec
    if len(sizes) > 1:
        raise ValueError(f"--size is {sizes}: this network's frames have one size, e.g. 1024")

    from dataclasses import replace

    return replace(options.spec, image_size=sizes[0])


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _start(params: dict[str, Any]) -> Path:
    """The checkpoint to start from: a file, or known by name."""
    from etsam.weights import START_WEIGHTS, fetch_start_weights, resolve_checkpoints

    asked = Path(params["start"])
    if asked.suffix in (".pt", ".pth", ".safetensors") or asked.is_file():
        return asked
    if params["start"] in START_WEIGHTS:
        return fetch_start_weights(params["start"])
    way = "name it with --start FILE"
    (file,) = resolve_checkpoints(params["start"], [params["stage"]], way=way)
    return file.path


def _fresh(params: dict[str, Any]) -> Fresh | None:
    """Simulation in the background, where it was asked for."""
    if not params["share"]:
        return None
    shape = parse_triple(params["simulate_shape"], "--simulate-shape")
    if params["stage"] == 2 and params["stage1_checkpoint"] is None:
        raise ValueError("--simulate for stage 2 needs --stage1-checkpoint")

    from etsam.simulate import check_shape, simulate_one
    from etsam.simulation.recipe import SimulationOptions
    from etsam.train import Fresh

    check_shape(shape)
    recipe = SimulationOptions(preset=params["simulate_preset"])
    make = partial(simulate_one, shape=shape, options=recipe)
    stage1 = params["stage1_checkpoint"] if params["stage"] == 2 else None
    return Fresh(make, share=params["share"], stage1=stage1)


def _make_stage1_logits(params: dict[str, Any], step: int, team: Team) -> None:
    """Run stage 1 over the data; of several processes the first does."""
    from etsam.feedback import write_stage1_logits

    for folder in filter(None, (*params["data"], params["validation"])) if team.leads else ():
        with StageProgress(unit="tomograms") as progress:
            write_stage1_logits(
                folder,
                params["stage1_checkpoint"],
                step=step,
                device=str(team.device),
                progress=partial(progress, f"stage-1 logits in {folder}"),
            )
    team.wait()


def _report(entry: dict[str, Any]) -> None:
    """One line of figures on stderr."""
    figures = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in entry.items()
    )
    click.echo("  ".join(figures), err=True)
