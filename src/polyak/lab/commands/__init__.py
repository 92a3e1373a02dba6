"""The commands of the command line."""

from polyak.lab.commands import compare, ledger, methods, reading  # noqa: F401  they add their commands, in this order
from polyak.lab.commands.app import app

__all__ = ["app"]
