"""What a function or an object computes: the sources that it is made of, and a digest of the values that they read.

Code that is carried to workers by value (that of ``__main__``, and functions and classes that a function makes) counts
with its source and with every value that it reads, other code of the user's with its files, and what is installed with
its name. An object counts with its class and with what pickling would keep of it.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyak.lab.errors import require
from polyak.lab.source import files_of_module, is_own

PLAIN = (int, float, complex, str, bytes, type(None))
SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)  # where a class keeps what its objects have


class Contents:
    """Collects what things are made of.

    ``sources`` are named source texts, as :func:`polyak.lab.source.digest` takes them.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[str, bytes]] = []
        self._known: dict[int, tuple[Any, bytes]] = {}  # with each thing itself, so that no other gets its identity
        self._modules: set[str] = set()

    def of(self, thing: Any) -> bytes:
        """A digest of a value; the sources behind it go to ``sources``."""
        if type(thing) in (*PLAIN, bool):
            return repr(thing).encode()
        if id(thing) not in self._known:
            self._known[id(thing)] = thing, b"around it"
            self._known[id(thing)] = thing, _digest(self._parts(thing))
        return self._known[id(thing)][1]

    def _parts(self, thing: Any) -> Iterator[bytes]:
        yield _name(type(thing))
        if isinstance(thing, types.FunctionType):
            yield from self._of_function(thing)
        elif isinstance(thing, type):
            yield from self._of_class(thing)
        elif isinstance(thing, types.ModuleType):
            yield thing.__name__.encode()
            self._take_files(thing)
        elif isinstance(thing, types.MethodType):
            yield from map(self.of, (thing.__func__, thing.__self__))
        elif isinstance(thing, (staticmethod, classmethod)):
            yield self.of(thing.__func__)
        elif isinstance(thing, property):
            yield from map(self.of, (thing.fget, thing.fset, thing.fdel))
        elif type(thing) in (list, tuple):
            yield from map(self.of, thing)
        elif type(thing) is dict:
            yield from (self.of(each) for pair in thing.items() for each in pair)
        elif type(thing) in (set, frozenset):
            yield from sorted(map(self.of, thing))
        else:
            yield from self._of_object(thing)

    def _of_function(self, function: types.FunctionType) -> Iterator[bytes]:
        yield _name(function)
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        by_value = _is_main(module)
        if by_value:
            self.sources.append((function.__qualname__, _source(function)))
        elif self._take_files(module):
            by_value = "<" in function.__qualname__
        if by_value:
            yield from (self.of(each) for pair in _read_globals(function) for each in pair)
        yield from map(self.of, (function.__defaults__, function.__kwdefaults__, function.__dict__))
        for cell in function.__closure__ or ():  # of an installed one too, which may be around one of the user's
            yield self.of(cell.cell_contents) if _is_filled(cell) else b"empty"

    def _of_class(self, one: type) -> Iterator[bytes]:
        yield _name(one)
        module = sys.modules.get(one.__module__)
        if not (_is_main(module) or (self._take_files(module) and "<" in one.__qualname__)):
            return
        yield from map(self.of, one.__bases__)
        for name, value in sorted(vars(one).items()):
            words = name.startswith("__") and not callable(value)
            if not (words or name.startswith("_abc_") or isinstance(value, SLOTS)):
                yield name.encode()
                yield self.of(value)

    def _of_object(self, thing: Any) -> Iterator[bytes]:
        if isinstance(thing, Tensor):
            found = _of_tensor(thing)
            if found is not None:
                yield found
                return
        if hasattr(thing, "__wrapped__"):  # a cache around a function, which pickling keeps by name
            yield self.of(thing.__wrapped__)
        yield self.of(type(thing))
        try:
            reducer = copyreg.dispatch_table.get(type(thing))
            made = thing.__reduce_ex__(4) if reducer is None else reducer(thing)
            kept = made if isinstance(made, str) else [list(e) if isinstance(e, Iterator) else e for e in made]
        except Exception:  # pickle has no way; cloudpickle may
            yield _pickled(thing)
            return
        yield self.of(kept)

    def _take_files(self, module: types.ModuleType | None) -> bool:
        """Note the files of a module that is the user's own; whether it is."""
        path = getattr(module, "__file__", None)
        if module is None or path is None or not is_own(Path(path).resolve()):
            return False
        if module.__name__ not in self._modules:
            self._modules.add(module.__name__)
            self.sources += [(f"{module.__name__}:{name}", source) for name, source in files_of_module(module)]
        return True


def _digest(parts: Iterator[bytes]) -> bytes:
    content = hashlib.sha256()
    for part in parts:
        content.update(part + b"\0")
    return content.hexdigest().encode()


def _name(thing: Any) -> bytes:
    return f"{thing.__module__}.{thing.__qualname__}".encode()


def _is_main(module: types.ModuleType | None) -> bool:
    return module is None or module.__name__ == "__main__"


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _of_tensor(tensor: Tensor) -> bytes | None:
    """A digest of a tensor; None where it is not laid out like an array."""
    try:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        words = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} "
        return hashlib.sha256(words.encode() + values.view(torch.uint8).numpy().tobytes()).hexdigest().encode()
    except (RuntimeError, TypeError):
        return None


def _pickled(thing: Any) -> bytes:
    try:
        return hashlib.sha256(require("cloudpickle").dumps(thing)).hexdigest().encode()
    except Exception:  # it is not carried either
        return b""


def _source(function: types.FunctionType) -> bytes:
    try:
        return inspect.cleandoc("\n" + inspect.getsource(function.__code__)).encode()
    except OSError:  # made by a decorator, or typed where nothing keeps it
        code = function.__code__
        return f"code = {code.co_code!r}, {[each for each in code.co_consts if isinstance(each, PLAIN)]!r}".encode()


def _read_globals(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The globals that a function reads, by name, in order."""
    codes, names = [function.__code__], set[str]()
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        names |= {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return [(name, function.__globals__[name]) for name in sorted(names & function.__globals__.keys())]
