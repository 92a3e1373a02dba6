"""Byte-level GPTs on the text of Python's own standard library, in small batches and in large ones.

Files, not lines, are divided between training, validation and test, so no text is in two of them. The text belongs
to the running interpreter: the versions in a run's key include Python's.
"""

from __future__ import annotations

import hashlib
import sysconfig
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from polyak.lab.builtin.gpt import GPT, on_text, small_gpt
from polyak.lab.problems import Problem

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
    """A byte-level GPT."""
    text = "A byte-level GPT of one million parameters on the source text of Python's standard library."
    model = partial(GPT, width=128, depth=5)
    return on_text("stdlib-lm", _texts(), model, batch=8, steps=400, target=3.2, description=text)


def large_batch() -> Problem:
    """A smaller one, in few steps of large batches."""
    text = (
        "A byte-level GPT of 140 thousand parameters on the source text of Python's standard library, in 60 steps of "
        "64 windows: large batches, and few chances to move."
    )
    return on_text("stdlib-lm-large-batch", _texts(), small_gpt, batch=64, steps=60, target=4.4, description=text)
