"""The door of the command line: ``polyak compare | runs | report | list | show | compile | ledger``."""

from __future__ import annotations

import sys
from typing import Any

EXTRAS = ("typer", "rich")


def __getattr__(name: str) -> Any:
    if name == "app":
        from polyak.lab.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line; a mistake is one line on stderr and an exit code that is not 0."""
    try:
        from polyak.lab.commands import app
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        sys.exit(_fail(f'the command line needs {missing.name}: pip install "polyak[lab]"', 2))
    from polyak.lab.errors import LabError

    try:
        app()
    except LabError as error:
        sys.exit(_fail(str(error), error.exit_code))


def _fail(message: str, code: int) -> int:
    print(f"polyak: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
