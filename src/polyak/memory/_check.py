"""One way to refuse an argument, so that every error names the argument, the value got and what is allowed."""

from __future__ import annotations


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``ValueError("<name> must be <allowed>, got <value>")`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
