"""Mistakes that one clear line explains, and the wording they share."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class LabError(Exception):
    """Something outside the program went wrong (a full disk, a read-only store); one line says what."""

    exit_code = 1


class BadInput(LabError):
    """The user asked for something that does not exist or cannot be; one line says what is possible."""

    exit_code = 2


def suggestion(name: str, known: Iterable[str]) -> str:
    """Text that names the nearest of ``known``, or all of them when none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def require(module: str, extra: str = "lab") -> Any:
    """Import an optional dependency, or say in one line which of polyak's extras has it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise BadInput(f'this needs {missing.name}: pip install "polyak[{extra}]"') from missing
