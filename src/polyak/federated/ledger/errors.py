"""What goes wrong with a ledger, each in one line."""

from __future__ import annotations


class LedgerError(Exception):
    """A ledger cannot be opened, read or written: no database, none of this kind, locked, a full disk."""


class Tampered(LedgerError):
    """A ledger is not what was written.

    Attributes:
        entry: the first bad entry, counted from 0; None where it is the configuration or the known head.
        fault: ``"changed"``, ``"removed"``, ``"inserted"``, ``"reordered"``, ``"truncated"``, ``"rewritten"`` or
            ``"refused"`` (the chain is whole, and the contract's rules do not allow the entry).
    """

    def __init__(self, fault: str, entry: int | None, words: str) -> None:
        super().__init__(words)
        self.entry, self.fault = entry, fault


class Refused(ValueError):
    """The contract's rules do not allow an entry; nothing is written then."""
