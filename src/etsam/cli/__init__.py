"""The command ``etsam``: one subcommand per verb, one line per expected error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from etsam import __version__
from etsam.cli.baseline import baseline
from etsam.cli.command import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXPECTED_ERRORS,
    report_error,
    report_warning,
)
from etsam.cli.compare import compare
from etsam.cli.download import download
from etsam.cli.evaluate import evaluate
from etsam.cli.export import export
from etsam.cli.figures import figures
from etsam.cli.inspect import inspect, verify
from etsam.cli.postprocess import postprocess
from etsam.cli.prepare import prepare
from etsam.cli.report import report
from etsam.cli.segment import segment
from etsam.cli.simulate import simulate
from etsam.cli.status import status
from etsam.cli.streams import make_patient
from etsam.cli.train import train
from etsam.cli.weights import weights

EXIT_USAGE = 2


class VerbGroup(click.Group):
    """Subcommands in the order they are used in."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="etsam")
@click.pass_context
def etsam(ctx: click.Context) -> None:
    """Membranes in cryo-electron tomograms, from a tomogram to a mask in one command.

    \b
    etsam segment TS_001.mrc        writes TS_001_membrane.mrc, a preview and a JSON
    etsam segment --sample          the same on a small tomogram simulated on the spot
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _verb in (
    inspect,
    segment,
    status,
    verify,
    postprocess,
    report,
    export,
    evaluate,
    compare,
    figures,
    baseline,
    simulate,
    download,
    prepare,
    train,
    weights,
):
    etsam.add_command(_verb)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, else as docs/facilities.md says."""
    output = make_patient()
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        # each verb knows what its patterns stand for; click would put all files in their place on Windows
        code = etsam.main(
            args=args, prog_name="etsam", standalone_mode=False, windows_expand_args=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = EXIT_USAGE
    except click.UsageError as error:
        report_error(error.format_message())
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_INTERRUPTED
    except EXPECTED_ERRORS as error:
        report_error(error)
        code = EXIT_FAILED
    code = code if isinstance(code, int) else 0
    sys.stdout.flush()
    if output is not None and output.failure is not None and output.is_cut:
        report_error(f"standard output: {output.failure.strerror}: what was printed is incomplete")
        code = code or 1
    sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_place: object) -> None:
    if issubclass(category, UserWarning | RuntimeWarning):
        report_warning(message)
