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

CODE = ("memory", "optim", "lab/train.py")


@lru_cache
def versions() -> dict[str, str]:
    """What else a figure depends on. ``code`` is a digest of polyak's own source, so a changed rule is run again."""
    root = Path(polyak.__path__[0])
    digest = hashlib.sha256()
    for part in CODE:
        for path in sorted([root / part] if part.endswith(".py") else (root / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return {
        "polyak": polyak.__version__,
        "code": digest.hexdigest()[:16],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


Bars = tuple[tuple[int, float], ...]
NOT_IN_KEY = ("reference", "contender", "bars")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's figures.

    ``reference`` and ``contender`` (empty: a method of this name) say where problem and method are found, ``code``
    what the method is. ``bars`` are steps with the validation metric that a trial must hold there to go on; a trial
    that is not stopped has the figures that it would have had without.
    """

    reference: str = field(repr=False)
    problem: str
    source: str = field(repr=False)
    method: str
    setting: dict[str, Any]
    seed: int
    split: str
    steps: int
    contender: str = field(default="", repr=False)
    code: str = field(default="", repr=False)
    bars: Bars = field(default=(), repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        """The run's name in the store: a hash of what the problem and the method are, setting, seed, split, steps."""
        content = {name: value for name, value in asdict(self).items() if name not in NOT_IN_KEY}
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
    steps: int
    versions: dict[str, str]
    status: str
    metric: float | None
    detail: dict[str, Any]


Records = Mapping[str, Record]
