"""What the scripts that make a page of docs/ share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def made(name: str, page: Callable[[], str]) -> int:
    """Write a page, or with ``--check`` compare it; 1 if it is out of date."""
    target, script = DOCS / name, Path(sys.argv[0]).name
    text = page()
    if "--check" not in sys.argv[1:]:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return 0
    print(f"docs/{name} is out of date: run python tools/{script}", file=sys.stderr)
    return 1
