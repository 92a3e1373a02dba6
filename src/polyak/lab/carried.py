"""Problems that are in no file: a function of a notebook is carried to the workers by value.

It is pickled into a temporary file, whose path is the problem's reference, together with a digest of the code and of
the values that it is made of, see :mod:`polyak.lab.contents`. So is any other callable that no file defines at its top:
``functools.partial(problem, noise=0.1)``, a lambda, an object with ``__call__``.
"""

from __future__ import annotations

import atexit
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

from polyak.lab.contents import Contents
from polyak.lab.errors import require
from polyak.lab.problem import Problem
from polyak.lab.source import digest

SUFFIX = ".problem"


def file_of(function: Callable[[], Problem]) -> str | None:
    """``path/to/file.py:function`` of a function that a file defines at its top; None for any other."""
    path = getattr(getattr(function, "__code__", None), "co_filename", "")
    name = getattr(function, "__qualname__", "")
    is_there = name.isidentifier() and path.endswith(".py") and os.path.isfile(path)
    return f"{Path(path).resolve()}:{name}" if is_there else None


def carry(function: Callable[[], Problem]) -> str:
    """Write a function where workers find it; its reference. The file is gone when this process ends."""
    pickled = require("cloudpickle").dumps(function)
    contents = Contents()
    values = contents.of(function).decode()
    digests = {split: digest(contents.sources, values, split=split) for split in ("validation", "test")}
    handle, path = tempfile.mkstemp(prefix="polyak-", suffix=SUFFIX)
    with open(handle, "wb") as file:
        pickle.dump((digests, pickled), file)
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


def unpack(path: str) -> tuple[Callable[[], Problem], str, str]:
    """The function of a file, the digest of its code and the one for tuning."""
    digests, pickled = pickle.loads(Path(path).read_bytes())
    return pickle.loads(pickled), digests["test"], digests["validation"]
