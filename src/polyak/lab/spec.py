"""What a run is: everything that decides its figures, and what is recorded when it has ended."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

import polyak
from polyak import optim
from polyak.lab.source import digest

SETTLED = ("finished", "stopped", "diverged")  # the ends of runs that are not made again
LOST = ("failed", "crashed", "timeout")  # ends that say nothing of the method, tried again by a later command
ENGINE = (
    "memory", "declare", "optim/engine", "optim/vocabulary", "optim/create.py", "optim/groups.py", "optim/method.py",
    "lab/loops.py", "lab/train.py",
)  # fmt: skip


@lru_cache
def versions() -> dict[str, str]:
    """What every figure depends on; ``code`` is a digest of what all methods share."""
    root = Path(polyak.__path__[0])
    parts = [root / part for part in ENGINE]
    paths = [path for part in parts for path in (part.rglob("*.py") if part.is_dir() else [part])]
    return {
        "polyak": polyak.__version__,
        "code": digest((str(path.relative_to(root)), path.read_bytes()) for path in paths)[:16],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@lru_cache
def method_code(method: str) -> str:
    """A digest of a method's own file and of those it derives from, so that no other method counts."""
    files = {Path(inspect.getfile(each)) for each in optim.get(method).__mro__ if ".optim.methods." in each.__module__}
    return digest((path.name, path.read_bytes()) for path in files)[:16]


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's figures.

    ``source`` is the digest of the problem's code, ``fingerprint`` how it behaves. A run is stopped at the first
    validation at step ``until`` or later.
    """

    reference: str = field(repr=False)
    problem: str
    source: str = field(repr=False)
    method: str
    setting: dict[str, Any]
    seed: int
    split: str
    steps: int | None
    fingerprint: str = field(default="", repr=False)
    until: int | None = None

    @cached_property
    def key(self) -> str:
        """The run's name in the store: a hash of all this but names, with the code of method and engine."""
        content = {name: value for name, value in asdict(self).items() if name not in ("reference", "problem")}
        text = json.dumps({**content, "code": method_code(self.method), "versions": versions()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Record:
    """A run that has ended."""

    key: str
    problem: str
    method: str
    setting: dict[str, Any]
    seed: int
    split: str
    steps: int | None
    versions: dict[str, str]
    status: str
    metric: float | None
    detail: dict[str, Any]


Records = Mapping[str, Record]
