"""The hash chain in its SQLite file: what the file must look like, and what is wrong with one that was edited.

Entry k is a row of four: its place, the hash of the row before (of the configuration for the first), its content as
canonical JSON, and the hash of both. A row that was edited, taken away, put in or moved no longer fits. Whoever
computes all later hashes anew makes another whole chain: only a head that somebody remembers tells the two apart.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from polyak.federated.ledger.errors import LedgerError, Tampered
from polyak.federated.ledger.exact import DIGEST, canonical, sha256
from polyak.federated.ledger.terms import Entry

APPLICATION = 0x706F6C79  # "poly"
VERSION = 1
SCHEMA = {
    "configuration": "CREATE TABLE configuration (text TEXT NOT NULL, hash TEXT NOT NULL)",
    "entries": "CREATE TABLE entries "
    "(position INTEGER PRIMARY KEY, previous TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL)",
} | {
    f"no_{verb.lower()}_of_{table}": f"CREATE TRIGGER no_{verb.lower()}_of_{table} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'a ledger is only appended to'); END"
    for table in ("configuration", "entries")
    for verb in ("UPDATE", "DELETE")
}
ROWS = "SELECT position, previous, body, hash FROM entries"


@dataclass(frozen=True)
class Head:
    """How far a ledger goes: whoever remembers it can tell later whether anything before was changed.

    Attributes:
        entries: their number; None where only the hash is remembered.
        hash: of the last one, or of the configuration where there is none.
    """

    entries: int | None
    hash: str

    def __str__(self) -> str:
        return self.hash if self.entries is None else f"{self.entries}:{self.hash}"

    @classmethod
    def read(cls, text: str) -> Head:
        """The head of its text, ``"12:<64 hexadecimal digits>"``, or of the hash alone.

        Raises:
            ValueError: any other text.
        """
        count, colon, found = text.rpartition(":")
        if not DIGEST.fullmatch(found) or (colon and not (count.isascii() and count.isdigit())):
            raise ValueError(f"head must be 'ENTRIES:HASH' or a hash of 64 hexadecimal digits, got {text!r}")
        return cls(int(count) if colon else None, found)


def body_of(entry: Entry) -> str:
    """An entry as the text that is hashed."""
    data = {"agent": entry.agent, "data": dict(entry.data), "index": entry.index, "kind": entry.kind}
    return canonical({**data, "payload": entry.payload, "round": entry.round})


def entry_of(body: str) -> Entry:
    """The entry of a text.

    Raises:
        ValueError: no text that :func:`body_of` writes.
    """
    try:
        entry = Entry(**json.loads(body))
        same = body_of(entry) == body
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no entry: {error}") from error
    kinds = {"index": int, "round": int, "kind": str, "agent": str, "payload": str}
    if not same or not all(type(getattr(entry, name)) is kind for name, kind in kinds.items()):
        raise ValueError("it is not in the form in which entries are written")
    if not all(isinstance(value, str) for value in entry.data.values()):
        raise ValueError("its data must be texts")
    return entry


def check_file(db: sqlite3.Connection) -> None:
    """Refuse a database that is no ledger, or not as this version writes it.

    Raises:
        LedgerError: another application's, or a newer version's.
        Tampered: tables or triggers were changed.
    """
    application, version = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    found = dict(db.execute("SELECT name, sql FROM sqlite_master"))
    if application != APPLICATION and found != SCHEMA:
        raise LedgerError("it is no ledger of polyak")
    if version > VERSION:
        raise LedgerError(f"a newer polyak wrote it (version {version}, not {VERSION}); upgrade polyak")
    if (application, version) != (APPLICATION, VERSION):
        raise Tampered("changed", None, "its application id or version was changed")
    if wrong := sorted(name for name in {*found, *SCHEMA} if found.get(name) != SCHEMA.get(name)):
        raise Tampered("changed", None, f"its tables or triggers were changed: {', '.join(wrong)}")


def configuration_of(db: sqlite3.Connection) -> tuple[dict[str, Any], str]:
    """The configuration, and its hash, with which the chain begins.

    Raises:
        Tampered: it was changed.
    """
    rows = db.execute("SELECT text, hash FROM configuration").fetchall()
    if len(rows) == 1:
        text, stored = rows[0]
        with suppress(TypeError, ValueError, RecursionError):
            if isinstance(text, str) and sha256(text) == stored and canonical(data := json.loads(text)) == text:
                return dict(data), stored
    raise Tampered("changed", None, "the configuration is changed: its content does not give its hash")


def walk(db: sqlite3.Connection, start: int, before: str) -> Iterator[tuple[Entry, str]]:
    """The entries from one on, each with its hash, as long as they are a chain.

    Args:
        db: in a transaction, so that no entry comes in between.
        start: the first.
        before: the hash of the one before it.

    Raises:
        Tampered: names the first entry that is not what was written there.
    """
    lowest = start or -(2**63)  # whoever reads all of it also sees what was put in before the first
    for index, row in enumerate(db.execute(f"{ROWS} WHERE position >= ? ORDER BY position", (lowest,)), start):
        position, previous, body, stored = row
        if position < index:
            raise Tampered("inserted", position, f"entry {position} is inserted: the first entry is 0")
        if position > index:
            raise Tampered("removed", index, f"entry {index} is removed: the next one is {position}")
        whole = all(isinstance(value, str) for value in row[1:]) and sha256(previous, body) == stored
        if not whole:
            raise Tampered("changed", index, f"entry {index} is changed: its content does not give its hash")
        if previous != before:
            raise _out_of_place(db, index, row, before)
        try:
            entry = entry_of(body)
        except ValueError as error:
            raise Tampered("changed", index, f"entry {index} is changed: {error}") from error
        if entry.index != index:
            raise Tampered("inserted", index, f"entry {index} is inserted: it was written as entry {entry.index}")
        yield entry, stored
        before = stored


def _out_of_place(db: sqlite3.Connection, index: int, row: Any, before: str) -> Tampered:
    """What is wrong with a row that is whole by itself and does not follow the row before it."""
    position, previous, body, _ = row
    two_before = db.execute("SELECT previous FROM entries WHERE position = ?", (index - 1,)).fetchone()
    if two_before is not None and two_before[0] == previous:
        words = f"entry {index - 1} is inserted: entry {index} follows the one before it"
        return Tampered("inserted", index - 1, words)
    elsewhere = db.execute("SELECT position FROM entries WHERE previous = ?", (before,)).fetchone()
    moved = db.execute("SELECT 1 FROM entries WHERE hash = ? AND position != ?", (previous, position)).fetchone()
    if elsewhere and moved:
        words = f"entry {index} is reordered: the one that belongs here stands at {elsewhere[0]}"
        return Tampered("reordered", index, words)
    if elsewhere:
        words = f"entry {index} is inserted: the one that follows entry {index - 1} stands at {elsewhere[0]}"
        return Tampered("inserted", index, words)
    try:
        written = entry_of(body).index
    except ValueError:
        written = index
    if written > index:
        return Tampered("removed", index, f"entry {index} is removed: the one here was written as entry {written}")
    after = f"entry {index - 1}" if index else "the configuration"
    return Tampered("changed", index, f"entry {index} is changed: it does not follow {after}")


def check_head(db: sqlite3.Connection, head: Head, genesis: str, entries: int) -> None:
    """Refuse a whole chain that does not lead through a head that somebody remembers.

    Raises:
        Tampered: it ends before, or leads elsewhere.
    """
    if head.entries is None:
        if head.hash == genesis or db.execute("SELECT 1 FROM entries WHERE hash = ?", (head.hash,)).fetchone():
            return
        words = f"the known head is not among its {entries} entries: it is truncated at the end, or written anew"
        raise Tampered("truncated", None, words)
    if head.entries > entries:
        raise Tampered("truncated", entries, f"entry {entries} is removed, with all after it: {head.entries} are known")
    last = head.entries - 1
    found = (genesis,) if last < 0 else db.execute("SELECT hash FROM entries WHERE position = ?", (last,)).fetchone()
    if found is None or found[0] != head.hash:
        what = f"entry {last} is" if last >= 0 else "the configuration is"
        raise Tampered(
            "rewritten", last if last >= 0 else None, f"{what} not the known one: the ledger is written anew"
        )
