"""The contract's entries in one SQLite file, that anybody may copy and verify.

The file has no write-ahead log beside it: it is whole by itself, also on a network file system. An append is one
transaction, so that a crash leaves the ledger without the entry or with it.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polyak.federated.ledger.chain import (
    APPLICATION,
    ROWS,
    SCHEMA,
    VERSION,
    Head,
    body_of,
    check_file,
    check_head,
    configuration_of,
    walk,
)
from polyak.federated.ledger.errors import LedgerError, Refused, Tampered
from polyak.federated.ledger.exact import canonical, decimal_text, sha256
from polyak.federated.ledger.replay import advance, payments_due
from polyak.federated.ledger.terms import Entry, State, Terms

PATIENCE = 30.0
"""Seconds that a process waits for others who write."""


@dataclass(frozen=True)
class Verified:
    """A ledger that is what was written: its terms, what follows from it, and how far it goes."""

    terms: Terms
    state: State
    head: Head


def verify(path: str | Path, head: str | None = None) -> Verified:
    """Read a ledger through, compute every hash, payment and state anew, and write nothing.

    Args:
        path: the file.
        head: what was remembered of it before, ``str(ledger.head)`` or a hash alone; it may have grown since.

    Raises:
        ValueError: a head that is none.
        Tampered: names the first bad entry and what is wrong with it.
        LedgerError: there is no such file, or it is no ledger.
    """
    known, place = None if head is None else Head.read(head), Path(path)
    with _opened(place, "read", PATIENCE) as db:
        check_file(db)
        data, genesis = configuration_of(db)
        try:
            terms = Terms.from_data(data)
        except (TypeError, ValueError) as error:
            raise Tampered("changed", None, f"the configuration is changed: {error}") from error
        found = _followed(db, Verified(terms, State(), Head(0, genesis)))
        if known is not None:
            check_head(db, known, genesis, found.head.entries or 0)
    return found


def _followed(db: sqlite3.Connection, known: Verified) -> Verified:
    """What is known after the entries behind the head, each of them checked."""
    state, (count, last) = known.state, (known.head.entries or 0, known.head.hash)
    for entry, stored in walk(db, count, last):
        try:
            state = advance(known.terms, state, entry)
        except Refused as error:
            raise Tampered("refused", entry.index, f"entry {entry.index} is not allowed: {error}") from error
        count, last = entry.index + 1, stored
    return Verified(known.terms, state, Head(count, last))


class Ledger:
    """A contract over a file, to which any number of processes append; a :class:`~polyak.federated.ledger.Contract`.

    ::

        hash_k = SHA-256(hash_{k-1} || canonical JSON of entry k),   hash_{-1} = SHA-256(configuration)

    A file believes whoever writes: entries name an agent, and are not signed. Whoever may write the file can write
    all of it anew; remember :attr:`head` elsewhere, and :func:`verify` tells.

    Args:
        path: the file, made by :meth:`create`; it is verified.
        head: what was remembered of it before, or None.
        patience: seconds to wait for others who write, at least 0.

    Raises:
        Tampered, LedgerError, ValueError: as :func:`verify`.
    """

    def __init__(self, path: str | Path, head: str | None = None, *, patience: float = PATIENCE) -> None:
        self.path, self.patience = Path(path), patience
        self._known = verify(self.path, head)

    @classmethod
    def create(cls, path: str | Path, terms: Terms, *, patience: float = PATIENCE) -> Ledger:
        """A new ledger that holds the terms and no entry.

        Raises:
            LedgerError: the file holds something already, or cannot be written.
        """
        text, place = canonical(terms.to_data()), Path(path)
        with _opened(place, "create", patience) as db:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerError("it exists already; open it, or name another file")
            for statement in SCHEMA.values():
                db.execute(statement)
            db.execute("INSERT INTO configuration VALUES (?, ?)", (text, sha256(text)))
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        return cls(place, patience=patience)

    @property
    def terms(self) -> Terms:
        """What the contract is made of."""
        return self._known.terms

    @property
    def state(self) -> State:
        """What follows from the entries so far, those of other processes too."""
        return self._caught_up().state

    @property
    def head(self) -> Head:
        """How far the ledger goes; remember its text elsewhere, for :func:`verify`."""
        return self._caught_up().head

    def entries(self) -> Iterator[Entry]:
        """All entries in order, as they are now."""
        with _opened(self.path, "read", self.patience) as db:
            return iter([entry for entry, _ in walk(db, 0, configuration_of(db)[1])])

    def json_lines(self) -> Iterator[str]:
        """The configuration and all entries as lines of JSON, each with its hash: for a real chain, or a reader."""
        yield canonical({"configuration": self.terms.to_data(), "hash": sha256(canonical(self.terms.to_data()))})
        with _opened(self.path, "read", self.patience) as db:
            rows = db.execute(f"{ROWS} ORDER BY position").fetchall()
        for position, previous, body, stored in rows:
            yield canonical({"position": position, "previous": previous, "body": body, "hash": stored})

    def register(self, agent: str) -> Entry:
        """Take part from this round on, with the stake of the terms. In the phase ``open``."""
        return self._append("register", agent, data=lambda state: {"stake": decimal_text(self.terms.stake)})

    def commit(self, agent: str, commitment: str) -> Entry:
        """Post :func:`~polyak.federated.ledger.commitment` of an update. In the phase ``commit``."""
        return self._append("commit", agent, commitment)

    def reveal(self, agent: str, update: str, salt: str) -> Entry:
        """Show the hash of the update, and the salt. In the phase ``reveal``."""
        return self._append("reveal", agent, update, lambda state: {"salt": salt})

    def aggregate(self, model: str, included: Mapping[str, str]) -> Entry:
        """Post the hash of the new model and of each update in it. In the phase ``aggregate``, which it ends."""
        return self._append("aggregate", self.terms.aggregator, model, lambda state: included)

    def evaluate(self, evaluator: str, contributions: Mapping[str, float]) -> Entry:
        """Post the contribution of each update in the model. In the phase ``evaluate``.

        Raises:
            ValueError, TypeError: a contribution that is not finite, or no number; nothing is written.
        """
        texts = {k: decimal_text(v, f"evaluate: the contribution of {k!r}") for k, v in contributions.items()}
        return self._append("evaluate", evaluator, data=lambda state: texts)

    def reward(self) -> Entry:
        """Pay by the rule; the payments are the entry's data. In the phase ``reward``, which it ends.

        Evaluators that differ by more than the rule's ``tolerance`` are warned of, and kept in ``state.disputed``.
        """
        entry = self._append("reward", self.terms.aggregator, data=lambda state: payments_due(self.terms, state))
        if names := [name for round, name in self._known.state.disputed if round == entry.round]:
            words = f"evaluators disagree on {names} in round {entry.round}; their median was taken"
            warnings.warn(words, stacklevel=2)
        return entry

    def close(self) -> Entry:
        """End the phase: the deadline of whoever has posted nothing. In all but ``aggregate`` and ``reward``."""
        return self._append("close", self.terms.aggregator)

    def _append(
        self,
        kind: str,
        agent: str,
        payload: str = "",
        data: Callable[[State], Mapping[str, str]] = lambda state: {},
    ) -> Entry:
        """Add an entry behind all that other processes added, if the rules allow it there."""
        with _opened(self.path, "write", self.patience) as db:
            known = self._read_on(db)
            count, last, state = known.head.entries or 0, known.head.hash, known.state
            try:
                entry = Entry(count, state.round, kind, agent, payload, dict(data(state)))
                body = body_of(entry)
            except TypeError as error:
                raise Refused(f"{kind}: {error}") from error
            after, hashed = advance(self.terms, state, entry), sha256(last, body)
            db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (count, last, body, hashed))
        self._known = Verified(self.terms, after, Head(count + 1, hashed))
        return entry

    def _caught_up(self) -> Verified:
        with _opened(self.path, "read", self.patience) as db:
            self._known = self._read_on(db)
        return self._known

    def _read_on(self, db: sqlite3.Connection) -> Verified:
        """What is known with the entries that others have added since, in a ledger that is still the same."""
        check_file(db)
        check_head(db, self._known.head, configuration_of(db)[1], _count(db))
        return _followed(db, self._known)


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(position) + 1, 0) FROM entries").fetchone()[0])


@contextmanager
def _opened(path: Path, action: Literal["create", "read", "write"], patience: float) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction, which takes hold when all went well; what went wrong names the file."""
    if action != "create" and not path.is_file():
        raise LedgerError(f"there is no ledger {str(path)!r}")
    # Also a reader must be able to undo what a writer that crashed left half done.
    mode = "rwc" if action == "create" else "rw" if action == "write" or os.access(path, os.W_OK) else "ro"
    try:
        address = f"{path.resolve().as_uri()}?mode={mode}"
        db = sqlite3.connect(address, uri=True, timeout=patience, isolation_level=None)
        try:
            db.text_factory = lambda raw: raw.decode(errors="replace")  # a letter that is none must not hide the rest
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN" if action == "read" else "BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # takes back what was not committed
    except sqlite3.Error as error:
        raise LedgerError(f"cannot {action} the ledger {str(path)!r}: {error}") from error
    except Tampered as error:
        error.args = (f"the ledger {str(path)!r} is not what was written: {error}",)
        raise
    except LedgerError as error:
        error.args = (f"cannot {action} the ledger {str(path)!r}: {error}",)
        raise
