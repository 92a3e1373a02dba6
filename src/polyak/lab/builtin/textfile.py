"""A byte-level GPT on a text file of the user's: ``textfile:path/to/book.txt``.

The first 8 tenths of the file are for training, the ninth for validation, the last for the test.
"""

from __future__ import annotations

from pathlib import Path

import torch

from polyak.lab.builtin.gpt import on_text, small_gpt
from polyak.lab.errors import BadInput
from polyak.lab.problems import Problem

LEAST = 10_000  # bytes


def text_file(path: Path) -> Problem:
    """The GPT of stdlib-lm on another text.

    Raises:
        BadInput: if it is no text, or too little of it.
    """
    if not path.is_file():
        raise BadInput(f"textfile needs one text file, but {str(path)!r} is a folder")
    text = path.read_bytes()
    if len(text) < LEAST:
        raise BadInput(f"textfile needs a text of at least {LEAST:,} bytes; {str(path)!r} has {len(text):,}")
    if 0 in text:
        raise BadInput(f"textfile needs text in UTF-8 or another encoding without zero bytes; {str(path)!r} has some")
    if len(set(text)) == 1:
        raise BadInput(f"textfile needs text; {str(path)!r} repeats one byte, {text[:1]!r}")
    tenth = len(text) // 10
    symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    parts = symbols.split([len(text) - 2 * tenth, tenth, tenth])
    return on_text(
        f"textfile:{path.name}",
        dict(zip(("train", "validation", "test"), parts, strict=True)),
        small_gpt,
        batch=16,
        steps=400,
        target=None,
        description=f"A byte-level GPT of 140 thousand parameters on the {len(text):,} bytes of {path.name}.",
    )
