"""What a run is: everything that decides its figures, and what is recorded when it has ended."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

import polyak
from polyak.lab.source import digest

SETTLED = ("finished", "stopped", "diverged")  # the ends of runs that are not made again
LOST = ("failed", "crashed", "timeout")  # ends that say nothing of the method, tried again by a later command
ENGINE = (
    "memory", "declare", "optim/engine", "optim/vocabulary", "optim/create.py", "optim/groups.py", "optim/method.py",
    "optim/layerwise/groups.py", "lab/contenders.py", "lab/loops.py", "lab/problem.py", "lab/seeding.py",
    "lab/train.py",
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


Bars = tuple[tuple[int, float], ...]
NOT_IN_KEY = ("reference", "problem", "contender", "bars")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's figures.

    ``reference`` and ``contender`` (empty: a method of this name) say where problem and method are found, ``source``
    and ``code`` what they are, as digests, ``fingerprint`` how the problem behaves. ``bars`` are steps with the
    validation metric that a trial must hold there to go on; a trial that is not stopped has the figures that it would
    have had without, and one that was stopped answers only for a spec whose bars stop it too
    (:func:`polyak.lab.stopping.answers`). ``device`` is where a declared problem
    is put, empty where that is left to it.
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
    contender: str = field(default="", repr=False)
    code: str = field(default="", repr=False)
    bars: Bars = field(default=(), repr=False, compare=False)
    device: str = field(default="", repr=False)

    @cached_property
    def key(self) -> str:
        """The run's name in the store: a hash of all this but where things lie, what a problem is called, and bars."""
        content = {name: value for name, value in asdict(self).items() if name not in NOT_IN_KEY}
        if not self.device:
            del content["device"]
        text = json.dumps({**content, "versions": versions()}, sort_keys=True)
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
