"""MemBrain-seg and TARDIS, run by their own command lines where they are installed.

They live in environments of their own (both want particular versions of torch). Each gets a plain MRC
copy of the tomogram in a scratch folder and is asked for scores rather than a mask; what it wrote is
read back and everything else it leaves goes with the folder. The command lines are those of
MemBrain-seg 0.0.10 (`membrain segment`) and TARDIS-em 0.3.36 (`tardis_mem`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from etsam.baselines.ridge import Progress
from etsam.predictions import TARDIS_THRESHOLD, open_prediction
from etsam.volume import Tomogram, create_volume, tomogram_from_array

ProgramName = Literal["membrain-seg", "tardis"]

COPY = "tomogram.mrc"  # TARDIS skips names that end in "mask.mrc", and names its results after this
LOG = "log.txt"
KEPT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Environment variables that would show the other program our libraries instead of its own."""

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAMES = " \t│┃|╭╰─━╮╯┌└┐┘*"  # what boxes round messages are drawn with
COMPLAINT = re.compile(r"(error|exception|description|killed)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Program:
    """What there is to know about another program.

    Attributes
    ----------
    name, executable, package
        What we call it, its command, and what pip calls it.
    threshold
        Scores above are membrane, by its own default.
    scores
        Suffix of the scores it writes, which `etsam.predictions` knows.
    needs_weights, needs_spacing
        It has no weights unless they are given; it scales the volume by the voxel size.
    """

    name: ProgramName
    executable: str
    package: str
    threshold: float
    scores: str
    needs_weights: bool
    needs_spacing: bool


MEMBRAIN = Program("membrain-seg", "membrain", "membrain-seg", 0.0, "_scores", True, False)
TARDIS = Program("tardis", "tardis_mem", "tardis-em", TARDIS_THRESHOLD, "_CNN", False, True)


@dataclass(frozen=True)
class ProgramOptions:
    """How another program is run.

    Attributes
    ----------
    program
        `MEMBRAIN` or `TARDIS`.
    weights
        Its checkpoint.
    executable
        Path of its command, where that is not on PATH.
    extra
        Further arguments, as on its own command line.
    invert
        Membranes are bright; both programs want them dark.
    voxel_spacing
        Å, in place of what the file says.
    """

    program: Program
    weights: Path | None = None
    executable: Path | None = None
    extra: tuple[str, ...] = ()
    invert: bool = False
    voxel_spacing: float | None = None


@dataclass(frozen=True)
class Run:
    """A run that succeeded: the command, the file of scores, and the most memory it held [MB]."""

    command: list[str]
    scores: Path
    peak_rss_mb: float | None


def find_executable(options: ProgramOptions) -> str:
    """Return the path of the program.

    Raises
    ------
    FileNotFoundError
        It is not there; says how to install it.
    ValueError
        It needs weights and none are given.
    """
    program = options.program
    wanted = program.executable
    if options.executable is not None:  # as a path ./NAME is NAME, which PATH alone is searched for
        is_here = options.executable.is_file()
        wanted = str(options.executable.absolute() if is_here else options.executable)
    found = shutil.which(wanted)
    if found is None:
        where = "is not on PATH" if options.executable is None else "is no program"
        raise FileNotFoundError(
            f"{wanted} {where}: python -m venv ENV && ENV/bin/pip install {program.package}, then "
            f"give --program ENV/bin/{program.executable}"
        )
    if program.needs_weights and options.weights is None:
        raise ValueError(f"{program.name} brings no weights: give --weights CHECKPOINT")
    if options.weights is not None and not options.weights.is_file():
        raise FileNotFoundError(f"{options.weights} does not exist: --weights expects a checkpoint")
    return os.path.abspath(found)  # not resolved: an environment's command may be a link


def run_program(
    tomogram: Tomogram, options: ProgramOptions, scratch: Path, progress: Progress | None = None
) -> Run:
    """Run the program on a copy of a tomogram in `scratch`.

    Raises
    ------
    FileNotFoundError, ValueError
        It is not there, failed (with its last line), or wrote nothing.
    """
    executable, name = find_executable(options), options.program.name
    spacing = tomogram.voxel_spacing
    if options.program.needs_spacing and spacing is None:
        raise ValueError(f"{name} scales by the voxel size, which is unknown: give --voxel-spacing")
    inputs = scratch / "in"
    inputs.mkdir()
    _write_copy(tomogram, inputs / COPY, options.invert, progress)
    if options.program == MEMBRAIN:
        arguments, scores = _membrain(inputs, options)
    else:
        assert spacing is not None
        arguments, scores = _tardis(inputs, options, spacing[2])
    command = [executable, *arguments, *options.extra]
    if progress is not None:
        progress(name, 0, tomogram.shape[0])
    code, peak = _execute(command, scratch)
    said = last_words(scratch / LOG)
    if code < 0:
        raise ValueError(f"{name} was killed by signal {-code} (9: out of memory?): {said}")
    if code:
        raise ValueError(f"{name} failed with exit code {code}: {said}")
    if not scores.is_file():
        raise ValueError(f"{name} ended without writing scores: {said}")
    return Run(command, scores, peak)


def score_slices(
    run: Run, tomogram: Tomogram, name: str, progress: Progress | None = None
) -> Generator[NDArray[np.float32], None, None]:
    """Yield the scores (Y, X) of every slice.

    Raises
    ------
    ValueError
        They have another shape than the tomogram.
    """
    with closing(open_prediction(run.scores)) as scores:
        if scores.shape != tomogram.shape:
            raise ValueError(
                f"{name} wrote scores of shape {scores.shape}, the tomogram has {tomogram.shape}"
            )
        for z in range(tomogram.shape[0]):
            yield scores.read_slice(z)
            if progress is not None:
                progress(name, z + 1, tomogram.shape[0])
        if scores.replaced_voxels:
            warnings.warn(
                f"{name} wrote {scores.replaced_voxels} scores that are no numbers: they were "
                "replaced by their slice's mean",
                stacklevel=2,
            )


def last_words(log: Path) -> str:
    """Return the last complaint in what a program said, else its last line."""
    text = ESCAPES.sub("", log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n"))
    lines = [line.strip(FRAMES) for line in text.splitlines()]
    spoken = [line for line in lines if re.search(r"\w", line)]
    complaints = [line for line in spoken if COMPLAINT.search(line)]
    return (complaints or spoken or ["it said nothing"])[-1]


def _membrain(inputs: Path, options: ProgramOptions) -> tuple[list[str], Path]:
    """Return arguments of `membrain segment` and where it puts its scores."""
    output = inputs.parent / "out"
    arguments = ["segment", "--tomogram-path", str(inputs / COPY)]
    arguments += ["--ckpt-path", str(options.weights and options.weights.resolve())]
    arguments += ["--out-folder", str(output), "--store-probabilities"]
    return arguments, output / f"{Path(COPY).stem}_scores.mrc"


def _tardis(inputs: Path, options: ProgramOptions, spacing: float) -> tuple[list[str], Path]:
    """Return arguments of `tardis_mem` and where it puts its probabilities: threshold 0 asks for them."""
    arguments = ["--path", str(inputs), "--output_format", "mrc_None", "--cnn_threshold", "0"]
    arguments += ["--correct_px", f"{spacing:g}"]
    if options.weights is not None:
        arguments += ["--cnn_checkpoint", str(options.weights.resolve())]
    return arguments, inputs / "Predictions" / f"{Path(COPY).stem}_CNN.tif"


def _write_copy(
    tomogram: Tomogram, path: Path, invert: bool, progress: Progress | None = None
) -> None:
    """Write a tomogram as the plainest MRC: float32, little-endian, nothing but voxel size."""
    like = tomogram_from_array(np.broadcast_to(np.float32(0), tomogram.shape))
    like.voxel_spacing = tomogram.voxel_spacing
    with create_volume(path, like, dtype="float32", label="etsam baseline") as copy:
        for z in range(tomogram.shape[0]):
            plane = tomogram.read_slice(z)
            copy.write_slice(z, -plane if invert else plane)
            if progress is not None:
                progress("copy", z + 1, tomogram.shape[0])


def _execute(command: list[str], scratch: Path) -> tuple[int, float | None]:
    """Run a command, its words into a file; return exit code and most memory held [MB]."""
    surroundings = {key: value for key, value in os.environ.items() if key not in KEPT_OUT}
    surroundings |= {"NO_COLOR": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with (
        (scratch / LOG).open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=surroundings,
        ) as process,
    ):
        try:
            return _wait(process)
        except BaseException:
            process.kill()
            raise


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float | None]:
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return process.returncode, round(usage.ru_maxrss * unit / 1e6, 1)
