"""Where packages are kept: folders that nobody but their owner writes, files that are checked before they are loaded.

    <cache>/<versions of torch and polyak>/<name>-<key>-<sha256 of the content>.pt2
                                           <key>.lock

A file appears under its name at once and whole. Others may have made, changed or replaced what lies there; whatever is
not this user's (or root's), or not what its name says, is never loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from polyak.aot.report import say_once

UNUSED_DAYS = 7  # after which packages of other versions are removed
POLL, PATIENCE = 0.05, 300.0  # seconds between looks at a lock, and until one is no longer waited for
SUFFIX = ".pt2"


def folder() -> Path:
    """The user's cache folder, whether it is there or not: ``POLYAK_CACHE``, or polyak in ``XDG_CACHE_HOME``."""
    if chosen := os.environ.get("POLYAK_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "polyak"


@functools.cache
def temporary(process: int) -> Path:
    """A folder that lives as long as this process (a forked one gets its own)."""
    path = Path(tempfile.mkdtemp(prefix="polyak-"))
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == process else None)
    return path


def trusted(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's or root's, and no one else may write it."""
    if not hasattr(os, "getuid"):  # Windows: access is not in the mode
        return True
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class Shelf:
    """One folder of packages, of one version of torch and polyak."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.path = root, root / version

    @classmethod
    def of_user(cls, version: str) -> Shelf | None:
        """The one in the user's cache, made where it is missing; None, said once, where it cannot be used."""
        root: Path | None = None
        try:
            root = folder()
            for path in (root, root / version):
                with contextlib.suppress(FileExistsError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.mkdir(mode=0o700)
                if not trusted(path.stat()):
                    raise PermissionError(f"{path} belongs to another user, or others may write it")
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            say_once(
                f"polyak's cache folder {root or ''} cannot be used ({error}): what is compiled serves this process "
                "alone. Set POLYAK_CACHE to a folder of your own (chmod go-w)."
            )
            return None
        return cls(root, version)

    def find(self, key: str) -> Path | None:
        """The package of a key, checked. What is there under that key and is not right is removed, with a word."""
        try:
            names = [entry.name for entry in os.scandir(self.path) if entry.name.endswith(SUFFIX)]
        except OSError:
            return None
        for name in sorted(name for name in names if f"-{key}-" in name):
            path = self.path / name
            if reason := _wrong(path):
                self.remove(path, reason)
            else:
                with contextlib.suppress(OSError):
                    os.utime(self.path)  # in use: see sweep
                return path
        return None

    def remove(self, path: Path, reason: str) -> None:
        """Take a package away that must not be loaded, and say why."""
        say_once(f"{path} {reason}: it is not loaded, and compiled anew")
        with contextlib.suppress(OSError):
            path.unlink()

    def put(self, package: Path, slug: str, key: str) -> Path:
        """Keep a package: copied beside its place, then renamed, so that it is there whole or not at all."""
        target = self.path / f"{slug}-{key}-{_digest(package.read_bytes())}{SUFFIX}"
        part = self.path / f"{key}.{os.getpid()}.part"
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as out, package.open("rb") as content:
                shutil.copyfileobj(content, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        return target

    def sweep(self) -> None:
        """Remove the shelves of other versions that nobody used for a week, and what killed processes left here."""
        limit = time.time() - UNUSED_DAYS * 86400
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.root)):
                other = entry.is_dir(follow_symlinks=False) and entry.name.startswith("torch")
                if other and entry.name != self.path.name and entry.stat(follow_symlinks=False).st_mtime < limit:
                    shutil.rmtree(entry.path, ignore_errors=True)
            for part in self.path.glob("*.part"):
                if part.stat().st_mtime < limit:
                    part.unlink()

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[float], None]) -> Iterator[None]:
        """Be the only process and thread that compiles a key.

        ``waiting(seconds)`` is called again and again while another one has it, and may raise to give up. The system
        lets go of a lock when its process ends, however it ends. A lock that cannot be had, as on file systems
        without any, or is held for ever, is done without: the worst is a package that is compiled twice.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                file = stack.enter_context((self.path / f"{key}.lock").open("a+b"))
                start = time.monotonic()
                while not _take(file) and (waited := time.monotonic() - start) < PATIENCE:
                    waiting(waited)
                    time.sleep(POLL)
            yield


def _wrong(path: Path) -> str | None:
    """What is wrong with a package, in words."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not trusted(status):
            return "is no file of this user's own"
        intact = _digest(file.read()) == path.stem.rpartition("-")[2]
    return None if intact else "is damaged"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> bool:
        """Whether a file's lock could be had; it goes when the file is closed."""
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _take(file: IO[bytes]) -> bool:
        """Whether a file's lock could be had; it goes when the file is closed."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
