"""Errors are one line, of a length that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from etsam.messages import one_line
from etsam.tables import read_choices, read_table
from test_cli import Run, assert_one_line


def test_an_endless_message_keeps_its_beginning_and_its_end() -> None:
    path = "/data/" + "long name " * 100 + "a.mrc"
    line = one_line(f"{path}: {'x' * 100_000} is no number: expected one, from {path[:300]}")
    assert len(line) < 2000
    assert line.startswith(f"{path}: xxx") and line.endswith(f" ... {line[-600:]}")
    assert line.endswith(f"expected one, from {path[:300]}")
    whole = f"{path}: expected {path[:700]}"
    assert one_line(whole) == " ".join(whole.split())


def test_values_of_damaged_tables_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    row = f"dataset,run,method,stage,threshold,metric,value\nd,r,m,s,,dice,{'7x' * 5000}\n"
    path.write_text(row)
    with pytest.raises(ValueError, match=r"value: '7x[7x]*\.\.\.' is not a number$") as caught:
        read_table(path)
    assert len(str(caught.value)) < len(str(path)) + 120
    path.write_text(f"name,keep,drop,{'q' * 5000}\na,1,2,\n")
    with pytest.raises(ValueError, match=r"has a column 'q*\.\.\.': expected columns") as caught:
        read_choices(path)
    assert len(str(caught.value)) < len(str(path)) + 160


def test_an_endless_name_in_a_list_is_cut(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "list.txt"
    text.write_text("a/" * 6000 + "b.mrc\n")
    code, out, err = run("segment", text)
    assert (code, out) == (1, "")
    assert_one_line(err, str(tmp_path / "a/a"))
    assert len(err) < 2000
