"""Budgets of size, and what may be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "etsam").rglob("*.py"))
SCRIPTS = sorted(
    path for name in ("tests", "experiments", "benchmarks") for path in (ROOT / name).rglob("*.py")
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7

TORCH_FREE = [
    "etsam",
    "etsam.cli",
    "etsam.baseline",
    "etsam.download",
    "etsam.evaluate",
    "etsam.figures",
    "etsam.volume",
    "etsam.mrc",
    "etsam.ngff",
    "etsam.metrics",
    "etsam.postprocess",
    "etsam.prepare",
    "etsam.preview",
    "etsam.provenance",
    "etsam.weights",
]
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "skimage",
    "tensorstore",
    "transformers",
    "rich",
    "platformdirs",
)
HELP_MODULES = 400


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of a function's parameters; a leading ``*`` marks a catch-all."""
    arguments = function.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    catch_all = [f"*{a.arg}" for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [name for name in names if name not in ("self", "cls")] + catch_all


def imported_by(code: str) -> set[str]:
    """Modules loaded in a fresh interpreter after ``code`` has run."""
    script = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_readme_names_every_file() -> None:
    words = set((ROOT / "README.md").read_text(encoding="utf-8").split())
    scripts = [
        path for name in ("experiments", "benchmarks") for path in (ROOT / name).glob("*.py")
    ]
    missing = {path.name for path in SOURCES + scripts} - words
    assert not missing, f"README's tree lacks {sorted(missing)}"


def test_there_is_something_to_check() -> None:
    assert any(path.name == "weights.py" for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for function in functions(path):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        place = f"{path.name}:{function.lineno} {function.name}"
        assert lines <= MAX_FUNCTION_LINES, f"{place} has {lines} lines"
        names = parameters(function)
        assert len(names) <= MAX_PARAMETERS, f"{place} takes {len(names)} parameters"
        assert function.args.kwarg is None, f"{place} takes any keyword"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_does_not_bring_torch(module: str) -> None:
    assert "torch" not in imported_by(f"import {module}")


def test_help_loads_little() -> None:
    code = "import etsam.cli\ntry:\n    etsam.cli.main(['--help'])\nexcept SystemExit: pass"
    loaded = imported_by(code)
    assert not loaded & set(HEAVY)
    assert len(loaded) < HELP_MODULES


def test_public_names_are_listed_and_loaded_on_use() -> None:
    code = (
        "import etsam, sys\n"
        "assert {'segment', 'open_tomogram', 'resolve_model', '__version__'} <= set(dir(etsam))\n"
        "assert 'etsam.weights' not in sys.modules\n"
        "assert callable(etsam.resolve_model)\n"
        "try:\n    etsam.nonesuch\nexcept AttributeError as error:\n"
        "    assert 'nonesuch' in str(error)\nelse:\n    raise SystemExit('no AttributeError')\n"
    )
    assert "etsam.weights" in imported_by(code)
