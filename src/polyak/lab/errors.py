"""Mistakes that one clear line explains, and the wording they share."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Iterable
from typing import Any

MANY = 40  # names
INSTALL = 'pip install "polyak[lab]"'


class LabError(Exception):
    """Something outside the program went wrong (a full disk, a read-only store); one line says what."""

    exit_code = 1


class BadInput(LabError):
    """The user asked for something that does not exist or cannot be; one line says what is possible."""

    exit_code = 2


def suggestion(name: str, known: Iterable[str]) -> str:
    """Text that names the nearest of ``known``, or all of them when none is near and they fit a line."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known[:MANY])}{', ...' if len(known) > MANY else ''}"


def require(module: str) -> Any:
    """Import an optional dependency, or say in one line how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise BadInput(f"polyak compare needs {missing.name}: {INSTALL}") from missing


def raised(what: str, error: Exception, loader: str) -> BadInput:
    """What a user's file raised, in one line, with the line of it where there is one.

    Args:
        what: the file.
        error: what it raised.
        loader: the file that ran it, which is no news.
    """
    if isinstance(error, BadInput):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != loader]
    where = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    words = " ".join(str(error).split())
    return BadInput(f"{what} raised {type(error).__name__}: {words}{where}")
