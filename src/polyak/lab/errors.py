"""Mistakes that one clear line explains, and the wording they share."""

from __future__ import annotations

import difflib
import importlib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polyak
from polyak.lab.source import INSTALLED

MANY = 40  # names


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


def require(module: str, extra: str = "lab") -> Any:
    """Import an optional dependency, or say in one line which of polyak's extras has it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise BadInput(f'this needs {missing.name}: pip install "polyak[{extra}]"') from missing


def raised(what: str, error: BaseException) -> BadInput:
    """What a user's file raised, in one line."""
    return error if isinstance(error, BadInput) else BadInput(f"{what} raised {in_one_line(error)}")


def in_one_line(error: BaseException) -> str:
    """An exception with the last line of the user's own code that it came through, where there is one."""
    files = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    where = f" (line {files[-1].lineno} of {files[-1].filename})" if files else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _is_users(file: str) -> bool:
    others = "<", polyak.__path__[0], sysconfig.get_path("stdlib")
    return not file.startswith(others) and not INSTALLED.intersection(Path(file).parts)
