"""What compiling tells the user: a warning once, a line of progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator

_said: set[str] = set()


def say_once(message: str) -> None:
    """Warn, at most once in a process for a message."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def progress(words: str) -> Iterator[None]:
    """A line on a terminal while something takes its time; nothing where errors go to a file."""
    start = time.monotonic()
    shown = _write(f"polyak: {words} ... ")
    ended = "stopped"
    try:
        yield
        ended = "done"
    finally:
        if shown:
            _write(f"{ended} after {time.monotonic() - start:.0f} s\n")


def note(words: str) -> None:
    """A line of its own on a terminal."""
    _write(f"polyak: {words}\n")


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    return next(iter(str(error).strip().splitlines()), "")


def _write(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        if sys.stderr.isatty():
            sys.stderr.write(text)
            sys.stderr.flush()
            return True
    return False
