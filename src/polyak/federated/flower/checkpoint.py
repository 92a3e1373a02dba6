"""Files that are whole or not there, of tensors, numbers and text alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, saved: dict[str, Any]) -> None:
    """Write a file so that at any moment the old one or the new one is there, and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            torch.save(saved, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """What :func:`save` wrote; None where there is nothing.

    Raises:
        ValueError: it is another file.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds {type(saved).__name__}, not a dictionary")
    return saved
