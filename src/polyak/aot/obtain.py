"""Find a package, or make it, and load it."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from polyak.aot.build import UnsafeCompiler, build, missing_compiler, text, trace
from polyak.aot.cache import Shelf, temporary
from polyak.aot.kernel import Kernel
from polyak.aot.report import first_line, note, progress, say_once
from polyak.aot.source import Source, version

T = TypeVar("T")
INSTEAD = "polyak runs the same updates without compiling (execution='batched')"
WORD = 2.0  # seconds of waiting for another process until something is said
GRACE = 0.2  # seconds in which a Ctrl-C that killed the compiler reaches the thread that waits for it
MANY = 4  # kernels of one process from which on compiling the headers first pays


class _State:
    """What this process knows; nothing in it keeps a tensor, a function or a kernel."""

    def __init__(self) -> None:
        self.building = threading.Lock()  # torch's compiler does one thing at a time
        self.kernels: weakref.WeakValueDictionary[tuple[str, str], Kernel] = weakref.WeakValueDictionary()
        self.made = 0  # kernels compiled here
        self.own: Shelf | None = None  # for what the user's folder cannot keep
        self.no_compiler: str | None = None
        self.by_key: dict[str, str] = {}  # why a source was not compiled
        self.by_function: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()

    def failures(self, source: Source) -> dict[str, str]:
        """Where a source's failure is: by its identity, and without one by the very function."""
        return self.by_key if source.identity is not None else self.by_function.setdefault(source.function, {})


_state = _State()


def _forked() -> None:
    _state.building = threading.Lock()  # the parent's may be held by a thread that is not here
    _state.own = None  # the parent removes it when it ends


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Cancelled(Exception):
    """Nobody waits for the result any more."""


def load(source: Source) -> Kernel | None:
    """A kernel of a source, from its package; compiled first where there is none (about 10 s, once on a machine).

    Returns None where that cannot be, after one RuntimeWarning that says why. Either way the function has not run.
    Kernels are shared: one that is loaded and alive is returned at once. May be called from any thread and under any
    mode: the work is done in a thread of its own, which none of the caller's modes reaches.
    """
    if torch.compiler.is_compiling() or _disabled() is not None:
        return None
    source = _placed(source)
    if source.identity is not None and (known := _known(source, source.key())) is not None:
        return known
    return _isolated(lambda cancelled: _obtain(source, cancelled))


def prepare(sources: Iterable[Source]) -> dict[str, str]:
    """Compile ahead all sources that have no package yet, one after the other.

    Returns, for the name of each, ``"compiled"``, ``"there already"`` or why there is none. To compile several at a
    time, start several processes, with the same or with different sources: each source is compiled by one of them.
    """
    results: dict[str, str] = {}
    todo = []
    for source in map(_placed, sources):
        if source.identity is not None and _find(source.key()) is not None:
            results[source.name] = "there already"
        else:
            todo.append(source)
    for source in todo:
        kernel = None if _disabled() else _isolated(_obtaining(source, len(todo) >= MANY))
        results[source.name] = "compiled" if kernel is not None else failed(source) or "not compiled"
    return results


def failed(source: Source | None = None) -> str | None:
    """Why nothing is compiled in this process, or not this source; None if nothing is known against it."""
    reason = _switched_off() or _state.no_compiler
    if reason is None and source is not None:
        reason = _state.failures(source).get(source.key())
    return reason


def unavailable() -> str | None:
    """Why nothing is compiled in this process, with one RuntimeWarning; None if nothing is known against it."""
    return _disabled() or _state.no_compiler


def _placed(source: Source) -> Source:
    """A source whose device is that of this thread, where it names none: the thread that compiles has its own."""
    index: int | None = source.device.index  # which torch's stubs take for an int
    if source.device.type != "cuda" or index is not None:
        return source
    return replace(source, device=torch.device("cuda", torch.cuda.current_device()))


def _switched_off() -> str | None:
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(name) == "1":
            return f"{name}=1"
    config: Any = sys.modules.get("torch._dynamo.config")
    return "torch._dynamo.config.disable" if getattr(config, "disable", False) else None


def _disabled() -> str | None:
    """Why compiling is switched off, said once; asked each time, as it may be switched on again."""
    reason = _switched_off()
    if reason is not None:
        say_once(f"compiling is switched off ({reason}): {INSTEAD}")
    return reason


def _isolated(work: Callable[[threading.Event], T]) -> T | None:
    """Do work in a new thread, where no mode, autocast or default device of this one holds, and wait for it.

    If the wait is interrupted the thread ends by itself, soon, and leaves nothing.
    """
    cancelled = threading.Event()
    outcome: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work(cancelled))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="polyak-aot")
    try:
        thread.start()
        thread.join()
    except RuntimeError as error:  # no more threads, as when the interpreter is about to end
        say_once(f"nothing is compiled ({error}): {INSTEAD}")
        return None
    except BaseException:
        cancelled.set()
        raise
    if errors:
        raise errors.pop()
    return outcome[0]


def _obtaining(source: Source, many: bool) -> Callable[[threading.Event], Kernel | None]:
    return lambda cancelled: _obtain(source, cancelled, many)


def _obtain(source: Source, cancelled: threading.Event, many: bool = False) -> Kernel | None:
    """A kernel that is alive, or that of a package, or of a new package; None, with a word, if there can be none."""
    failures = _state.failures(source)
    if source.key() in failures:
        return None
    try:
        program = None
        if source.identity is None:
            with _state.building:
                program = trace(source)
        key = source.key() if program is None else source.key(text(program))
        kernel = _known(source, key) or _open(source, key)
        if kernel is None and _compiler_is_there():
            with (Shelf.of_user(version()) or _own()).lock(key, _Waiting(source, cancelled)), _state.building:
                kernel = _open(source, key) or _make(source, program, key, cancelled, many)
        return kernel
    except _Cancelled:
        return None
    except Exception as error:
        if cancelled.wait(GRACE):
            return None
        failures[source.key()] = reason = f"{type(error).__name__}: {first_line(error)}"
        say_once(f"{source.name} is not compiled ({reason}): {INSTEAD}")
        return None


def _known(source: Source, key: str) -> Kernel | None:
    return _state.kernels.get((key, str(source.device)))


def _shelves() -> list[Shelf]:
    """Where packages may be: the user's folder, if it can be used, and what this process keeps for itself."""
    return [shelf for shelf in (Shelf.of_user(version()), _state.own) if shelf is not None]


def _own() -> Shelf:
    """The shelf of this process alone, made when it is first needed."""
    if _state.own is None:
        _state.own = Shelf(temporary(os.getpid()), "")
    return _state.own


def _find(key: str) -> tuple[Shelf, Path] | None:
    return next(((shelf, path) for shelf in _shelves() if (path := shelf.find(key)) is not None), None)


def _open(source: Source, key: str) -> Kernel | None:
    """The kernel of the package that is there, if there is one that loads."""
    while (found := _find(key)) is not None:
        shelf, path = found
        try:
            return _state.kernels.setdefault((key, str(source.device)), Kernel(path, source.device))
        except Exception as error:
            shelf.remove(path, f"does not load ({first_line(error)})")
            if path.exists():  # a folder that is not ours to write
                return None
    return None


def _compiler_is_there() -> bool:
    if _state.no_compiler is None and (reason := missing_compiler()) is not None:
        _state.no_compiler = reason
        say_once(f"nothing is compiled, as {reason}: {INSTEAD}")
    return _state.no_compiler is None


class _Waiting:
    """What is done while another process compiles the same: say so on a terminal after a while, or give up."""

    def __init__(self, source: Source, cancelled: threading.Event) -> None:
        self.source, self.cancelled, self.said = source, cancelled, False

    def __call__(self, seconds: float) -> None:
        if self.cancelled.is_set():
            raise _Cancelled
        if seconds > WORD and not self.said:
            self.said = True
            note(f"waiting for another process that compiles {self.source.name}")


def _make(source: Source, program: Any, key: str, cancelled: threading.Event, many: bool) -> Kernel:
    """Compile and keep; in the user's folder if that can be, else in this process's."""
    many = many or _state.made >= MANY
    with TemporaryDirectory(prefix="polyak-") as work:
        package = Path(work) / "package.pt2"
        with progress(f"compiling {source.name} (once on this machine)"):
            try:
                build(source, program, package, many=many)
            except UnsafeCompiler as error:
                _state.no_compiler = str(error)
                raise
            except Exception:  # perhaps as the compiler lacks what the CPU has, which takes 16 s to find out
                if cancelled.wait(GRACE):
                    raise _Cancelled from None
                build(source, program, package, many=many, trusting=False)
        _state.made += 1
        if cancelled.is_set():
            raise _Cancelled
        shelf = Shelf.of_user(version()) or _own()
        try:
            path = shelf.put(package, source.slug, key)
        except OSError as error:
            say_once(f"{shelf.root} cannot keep what is compiled ({error}): it serves this process alone")
            path = _own().put(package, source.slug, key)
        shelf.sweep()
        return _state.kernels.setdefault((key, str(source.device)), Kernel(path, source.device))
