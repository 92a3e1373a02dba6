"""The command line, to which each module adds its commands."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="polyak",
    help="Momentum methods for PyTorch: look them up, and find out which one trains your problem best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
