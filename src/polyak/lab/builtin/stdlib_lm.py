"""A byte-level GPT of about one million parameters on the text of Python's own standard library, in small batches
and in large ones.

Files, not lines, are divided between training, validation and test, so no text is in two of them. The text belongs
to the running interpreter: the versions in a run's key include Python's.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from polyak.lab.builtin.gpt import BATCH, on_text
from polyak.lab.problems import Problem

LARGE = 8  # times the batch, and as many times fewer steps
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo"}


def split_of(name: str) -> str:
    """The split a file belongs to: 8 in 10 train, one validation, one test, by the digest of its name."""
    tenth = hashlib.sha256(name.encode()).digest()[0] % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def files() -> dict[str, list[Path]]:
    """The files of each split, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    splits: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        name = path.relative_to(root).as_posix()
        generated = name.startswith("_sysconfigdata")  # differs from machine to machine
        if not generated and not SKIPPED.intersection(path.relative_to(root).parts):
            splits[split_of(name)].append(path)
    return splits


def _text(paths: list[Path]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in paths)), dtype=torch.uint8)


def _texts() -> dict[str, Tensor]:
    return {split: _text(paths) for split, paths in files().items()}


def language_model() -> Problem:
    """The byte-level GPT."""
    text = "A byte-level GPT of one million parameters on the source text of Python's standard library."
    return on_text("stdlib-lm", _texts(), batch=BATCH, steps=400, target=3.2, description=text)


def large_batch() -> Problem:
    """The same text, eight times the batch and an eighth of the steps."""
    text = "stdlib-lm with batches 8 times as large and an eighth of the steps: as many bytes, few chances to move."
    batch, steps = BATCH * LARGE, 400 // LARGE
    return on_text("stdlib-lm-large-batch", _texts(), batch=batch, steps=steps, target=3.6, description=text)
