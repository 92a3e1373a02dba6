"""Files of the user's, run to find a problem or an optimizer in them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyak.lab.errors import BadInput, raised, suggestion
from polyak.lab.source import neighbours

_loading: list[None] = []  # an entry for each file that is being run, or function of it, at this moment
_executed: dict[Path, tuple[bytes, types.ModuleType]] = {}


class _EnoughLoaded(BaseException):
    """Ends a user's file at the line that would start a comparison."""


def stop_if_loading() -> None:
    """End the loading of a user's file here: it is a script that goes on to compare.

    What the script has defined above is all that its problem or optimizer needs, and without a ``__main__`` guard
    every process that loads it would compare again.
    """
    if _loading:
        raise _EnoughLoaded


@contextmanager
def as_script(path: Path) -> Iterator[None]:
    """Whatever is run in this block finds the command line that ``python path`` has, without arguments."""
    before, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def loading() -> Iterator[None]:
    """Whatever is run in this block is there to be loaded, and compares nothing."""
    _loading.append(None)
    try:
        yield
    finally:
        _loading.pop()


def read(path: Path, words: str) -> bytes:
    """The bytes of a file; ``words`` are what messages call it."""
    try:
        return path.read_bytes()
    except OSError as error:
        near = suggestion(path.name, sorted(p.name for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
        raise BadInput(f"cannot read {words}: {error.strerror}; {near}".rstrip("; ")) from error


def executed(path: Path, source: bytes, reference: str) -> types.ModuleType:
    """The module of a file with this source, which is run unless this process has it already."""
    before = _executed.get(path)
    return before[1] if before and before[0] == source else execute(path, source, reference)


def execute(path: Path, source: bytes, reference: str) -> types.ModuleType:
    """Run exactly the bytes that were read, as a module whose neighbours can be imported."""
    if str(path.parent) in sys.path:
        sys.path.remove(str(path.parent))
    sys.path.insert(0, str(path.parent))
    for name, place in neighbours(path, source).items():
        if place.is_relative_to(path.parent) and getattr(sys.modules.get(name), "__file__", None) != str(place):
            sys.modules.pop(name, None)  # another file's folder has a module of that name too
    module = types.ModuleType(_module_name(path))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look it up there
    try:
        with loading(), as_script(path):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except _EnoughLoaded:
        pass
    except (Exception, SystemExit) as error:
        raise raised(reference, error) from error
    _executed[path] = source, module
    return module


def _module_name(path: Path) -> str:
    """The name under which plain Python would import the file, where nothing else has it.

    The processes of a ``DataLoader`` find a class of the file by it where they are not forked.
    """
    there = sys.modules.get(path.stem)
    is_free = there is None or getattr(there, "__file__", None) == str(path)
    return path.stem if path.stem.isidentifier() and is_free else f"polyak_file_{path.stem}"
