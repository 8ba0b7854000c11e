"""Names of files and folders on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class FilePath(click.Path):
    """A `pathlib.Path`; an empty name is refused instead of meaning the current folder."""

    def __init__(
        self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True
    ) -> None:
        super().__init__(exists, file_okay, dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn what was typed into a path.

        Raises
        ------
        click.BadParameter
            It is empty, as a variable that is not set is in a shell.
        """
        if value == "":
            self.fail("the name is empty: expected a file or folder", param, ctx)
        return super().convert(value, param, ctx)
