"""Standard output and error that cannot end a run: readers may go away, disks be full, characters unknown there."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


ENCODING_ERRORS = "etsam.printed"


class PatientFile(io.FileIO):
    """A file that goes on where it cannot be written; `failure` says why."""

    failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write, or drop what cannot be written."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            return memoryview(data).nbytes

    @property
    def is_cut(self) -> bool:
        """Whether something is missing for those who still read: not where they went away."""
        went_away = {errno.EPIPE, errno.EINVAL} if sys.platform == "win32" else {errno.EPIPE}
        return self.failure is not None and self.failure.errno not in went_away


def make_patient() -> PatientFile | None:
    """Replace the process's own streams; returns the file behind standard output, None in a terminal.

    A closed one leads nowhere, lest its number become that of a result's file. Names that are no Unicode are
    printed as they are, in any locale, and a question mark for what the encoding of standard output has not.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    output = None
    if sys.stdout is sys.__stdout__:
        sys.stdout, output = _patient(sys.stdout)
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error(ENCODING_ERRORS, _printed)
            sys.stdout.reconfigure(errors=ENCODING_ERRORS)
    if sys.stderr is sys.__stderr__:
        sys.stderr, _ = _patient(sys.stderr, line_buffering=True)
    return output


def _printed(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is printed instead of a character that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    code, end = ord(error.object[error.start]), error.start + 1
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is no Unicode
        return bytes([code - 0xDC00]), end
    return "?", end


def _patient(
    stream: TextIO | None, *, line_buffering: bool = False
) -> tuple[TextIO | None, PatientFile | None]:
    """The stream with a patient file behind it, and that file; terminals stay as they are."""
    if stream is None or stream.isatty():
        return stream, None
    stream.flush()
    file = PatientFile(stream.fileno(), "wb", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=line_buffering,
    )
    return text, file
