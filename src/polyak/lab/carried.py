"""Problems that are in no file: a function of a notebook is carried to the workers by value.

It is pickled into a temporary file, whose path is the problem's reference, together with a digest of the source of
the function and of the notebook's functions and classes that it uses.
"""

from __future__ import annotations

import atexit
import inspect
import os
import pickle
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyak.lab.errors import require
from polyak.lab.problem import Problem
from polyak.lab.source import digest

SUFFIX = ".problem"
PLAIN = (int, float, complex, str, bytes, tuple, frozenset, type(None))


def file_of(function: Callable[[], Problem]) -> str | None:
    """``path/to/file.py:function`` of a function that a file defines at its top; None for any other."""
    path = getattr(getattr(function, "__code__", None), "co_filename", "")
    name = getattr(function, "__qualname__", "")
    is_there = name.isidentifier() and path.endswith(".py") and os.path.isfile(path)
    return f"{Path(path).resolve()}:{name}" if is_there else None


def carry(function: Callable[[], Problem]) -> str:
    """Write a function where workers find it; its reference. The file is gone when this process ends."""
    pickled = require("cloudpickle").dumps(function)
    sources = dict(_sources(function, getattr(function, "__name__", "problem"), set()))
    digests = {split: digest(sources.items(), split=split) for split in ("validation", "test")}
    handle, path = tempfile.mkstemp(prefix="polyak-", suffix=SUFFIX)
    with open(handle, "wb") as file:
        pickle.dump((digests, pickled), file)
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


def unpack(path: str) -> tuple[Callable[[], Problem], str, str]:
    """The function of a file, the digest of its code and the one for tuning."""
    digests, pickled = pickle.loads(Path(path).read_bytes())
    return pickle.loads(pickled), digests["test"], digests["validation"]


def _sources(thing: Any, name: str, seen: set[int]) -> Iterator[tuple[str, bytes]]:
    """What a function or class of the notebook does: its source and that of what it uses, and values that it reads."""
    if isinstance(thing, PLAIN):
        yield name, f"value = {thing!r}".encode()
    if not isinstance(thing, (types.FunctionType, type)) or id(thing) in seen or thing.__module__ != "__main__":
        return  # what a module defines is imported by the workers
    seen.add(id(thing))
    parts: dict[str, Any] = {}
    if isinstance(thing, type):
        parts = {**vars(thing), **{f"base {i}": base for i, base in enumerate(thing.__bases__)}}
    else:
        yield name, _source(thing)
        parts = dict(_used(thing))
    for part, value in parts.items():
        yield from _sources(value, f"{name}.{part}", seen)


def _source(function: types.FunctionType) -> bytes:
    try:
        return inspect.cleandoc("\n" + inspect.getsource(function)).encode()
    except OSError:  # made by a decorator, or typed where nothing keeps it
        code = function.__code__
        return f"code = {code.co_code!r}, {[each for each in code.co_consts if isinstance(each, PLAIN)]!r}".encode()


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals and the variables around it that a function reads, by name."""
    codes = [function.__code__]
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents
