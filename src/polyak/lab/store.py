"""The runs of all comparisons, in one SQLite file.

A run is claimed before it is made and finished after, each in one transaction, so any number of processes may share
a store. A claim says which process holds it. The claim of a process that is gone is free to be taken over: one of
this machine is gone when it no longer exists, one of another machine when it has not renewed its claims for a while.

What was compared is kept too, as a description of each comparison and the list of its runs, so that a report can be
made of the store alone. A row that cannot be read is left out, named in ``Store.unreadable``, and its run made again.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyak.lab.errors import LabError
from polyak.lab.loops import Outcome
from polyak.lab.mounts import network_of
from polyak.lab.spec import SETTLED, Record, RunSpec, versions

SCHEMA_VERSION = 2
RUNS = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY, problem TEXT, method TEXT, setting TEXT, seed INTEGER, split TEXT, steps INTEGER,
    versions TEXT, status TEXT, metric REAL, detail TEXT, owner TEXT, renewed REAL, ended REAL
) WITHOUT ROWID
"""
CAMPAIGNS = (  # what version 1 did not have
    "CREATE TABLE campaigns (identity TEXT PRIMARY KEY, began REAL, description TEXT) WITHOUT ROWID",
    "CREATE TABLE members (campaign TEXT, key TEXT, problem TEXT, PRIMARY KEY (campaign, key)) WITHOUT ROWID",
)
STALE_SECONDS = 60.0
RENEW_SECONDS = 10.0
LOCK_SECONDS = 30.0
COLUMNS = "key, problem, method, setting, seed, split, steps, versions, status, metric, detail"
OF_MEMBERS = COLUMNS.replace("key, problem", "runs.key, members.problem", 1)


def this_process() -> str:
    """A name for this process that no later one can have: machine, number and, where the system tells, start time."""
    return f"{socket.gethostname()} {os.getpid()} {_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-"
    return "ended" if fields[0] in "ZX" else fields[19]


def _alive(owner: str, renewed: float) -> bool:
    try:
        host, pid, started = owner.rsplit(" ", 2)
    except (AttributeError, ValueError):  # a damaged row
        return False
    if host != socket.gethostname() or os.name != "posix":  # elsewhere os.kill(pid, 0) is not a mere question
        return time.time() - renewed < STALE_SECONDS
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and is another user's
        pass
    return _start_time(int(pid)) == started


@dataclass(frozen=True)
class Stored:
    """A comparison as the store knows it: what it was about, in JSON-able data, and its runs so far."""

    identity: str
    description: dict[str, Any]
    runs: list[Record]


class Store:
    """The runs in one file, as one process sees and extends them.

    A failed or crashed run counts as ended for whoever was there, and is tried again by a command that starts later:
    the cause may have been the machine's.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self.opened, self.owner = path, time.time(), this_process()
        self.unreadable: list[str] = []
        self._renewed = 0.0
        with self._explained("open"):
            self._db = _open_to_read(path) if read_only else _open_to_write(path)
            # A damaged letter is no reason to lose the run, let alone all runs.
            self._db.text_factory = lambda raw: raw.decode(errors="replace")

    def close(self) -> None:
        """Give unfinished claims back and close the file."""
        with suppress(sqlite3.Error):  # a claim that stays is taken over when this process is gone
            self._db.execute("DELETE FROM runs WHERE owner = ? AND status = 'running'", (self.owner,))
        self._db.close()

    def claim(
        self, spec: RunSpec, fits: Callable[[Record], bool] = lambda record: True
    ) -> Record | Literal["mine", "busy"]:
        """Take a run, or learn that another process is at it, or what it came to, if that ``fits``."""
        with self._explained("write"), self._transaction():
            row = self._db.execute(
                f"SELECT {COLUMNS}, owner, renewed, ended FROM runs WHERE key = ?", (spec.key,)
            ).fetchone()
            if row is not None:
                *columns, owner, renewed, ended = row
                record = _record(columns)
                if columns[8] == "running" and owner != self.owner and _alive(owner, renewed):
                    return "busy"
                has_ended = columns[8] in SETTLED or (columns[8] != "running" and (ended or 0) >= self.opened)
                if record and has_ended and fits(record):
                    return record
            setting, used = json.dumps(spec.setting), json.dumps(versions())
            values = (spec.key, spec.problem, spec.method, setting, spec.seed, spec.split, spec.steps, used)
            self._db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running', NULL, '{}', ?, ?, NULL)",
                (*values, self.owner, time.time()),
            )
        return "mine"

    def finish(self, spec: RunSpec, outcome: Outcome) -> Record:
        """Write what a claimed run came to."""
        detail = json.dumps(outcome.detail, allow_nan=False)
        values = (outcome.status, outcome.metric, detail, time.time(), spec.key, self.owner)
        with self._explained("write"), self._transaction():
            self._db.execute(
                "UPDATE runs SET status = ?, metric = ?, detail = ?, ended = ? WHERE key = ? AND owner = ?", values
            )
        setting = json.loads(json.dumps(spec.setting))
        fields = (spec.key, spec.problem, spec.method, setting, spec.seed, spec.split, spec.steps, versions())
        return Record(*fields, outcome.status, outcome.metric, json.loads(detail))

    def renew(self) -> None:
        """Tell other machines, now and then, that this process still works on its claims."""
        if time.time() - self._renewed > RENEW_SECONDS:
            self._renewed = time.time()
            with self._explained("write"):
                self._db.execute(
                    "UPDATE runs SET renewed = ? WHERE owner = ? AND status = 'running'", (self._renewed, self.owner)
                )

    def runs(self) -> list[Record]:
        """Every run that can be read, also those under way."""
        return self._read(f"SELECT {COLUMNS} FROM runs ORDER BY problem, method, split DESC, seed, key")

    def _read(self, query: str, *values: str) -> list[Record]:
        with self._explained("read"):
            rows = self._db.execute(query, values).fetchall()
        records = {row[0]: _record(row) for row in rows}
        lost = [str(key) for key, record in records.items() if record is None]
        self.unreadable += [key for key in lost if key not in self.unreadable]
        return [record for record in records.values() if record is not None]

    def settled(self) -> list[Record]:
        """Every run that is not to be made again."""
        return [record for record in self.runs() if record.status in SETTLED]

    def begin(self, identity: str, description: dict[str, Any]) -> None:
        """Write down what a comparison is about; one that goes on is the same one.

        Args:
            identity: a name that a comparison of anything else does not have.
            description: JSON-able data.
        """
        with self._explained("write"), self._transaction():
            self._db.execute("DELETE FROM campaigns WHERE identity = ?", (identity,))
            row = (identity, time.time(), json.dumps(description))
            self._db.execute("INSERT INTO campaigns VALUES (?, ?, ?)", row)

    def description(self, identity: str) -> dict[str, Any]:
        """What is written down of a comparison; nothing where it is new, or cannot be read."""
        with self._explained("read"):
            row = self._db.execute("SELECT description FROM campaigns WHERE identity = ?", (identity,)).fetchone()
        with suppress(ValueError, TypeError):
            return dict(json.loads(row[0]))
        return {}

    def tell(self, identity: str, description: dict[str, Any]) -> None:
        """Write down more of a comparison that has begun."""
        with self._explained("write"):
            row = (json.dumps(description), identity)
            self._db.execute("UPDATE campaigns SET description = ? WHERE identity = ?", row)

    def note(self, identity: str, key: str, problem: str) -> None:
        """Write down that a run is one of a comparison's, which calls the problem by this name."""
        with self._explained("write"):
            self._db.execute("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", (identity, key, problem))

    def campaigns(self, identity: str | None = None) -> list[Stored]:
        """The comparisons that were made with this store, the last one last; none in a store of version 1.

        Args:
            identity: of the only one that is wanted.
        """
        with self._explained("read"):
            if _version(self._db) < 2:
                return []
            query = "SELECT identity, description FROM campaigns WHERE identity = coalesce(?, identity) ORDER BY began"
            rows = self._db.execute(query, (identity,)).fetchall()
        found = []
        for identity, text in rows:
            try:
                description = json.loads(text)
            except (ValueError, TypeError):
                self.unreadable.append(f"comparison {identity}")
                continue
            query = f"SELECT {OF_MEMBERS} FROM runs JOIN members ON members.key = runs.key WHERE campaign = ?"
            ended = [record for record in self._read(query, identity) if record.status != "running"]
            found.append(Stored(identity, description, ended))
        return found

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has already rolled it back
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            kept = "; the runs already in it are kept" if self.path.exists() and action == "write" else ""
            raise LabError(f"cannot {action} the store {str(self.path)!r}: {error}{kept}") from error


def _record(columns: Any) -> Record | None:
    """A row as a record, or ``None`` where it is damaged."""
    key, problem, method, setting, seed, split, steps, used, status, metric, detail = columns
    try:
        run = (key, problem, method, json.loads(setting), seed, split, steps, json.loads(used))
        record = Record(*run, status, metric, json.loads(detail))
    except (ValueError, TypeError):
        return None
    sound = isinstance(record.setting, dict) and isinstance(record.detail, dict) and isinstance(status, str)
    return record if sound and isinstance(metric, (float, int, type(None))) else None


def _open_to_write(path: Path) -> sqlite3.Connection:
    patience = time.monotonic() + LOCK_SECONDS
    # Its log needs memory that all writers share, which those of several machines do not.
    mode = "WAL" if network_of(path) is None else "DELETE"
    while True:
        try:
            return _prepared(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None), mode)
        except sqlite3.OperationalError as error:
            # Turning the write-ahead log on is the one thing for which SQLite does not wait its turn.
            if "locked" not in str(error) or time.monotonic() > patience:
                raise
            time.sleep(0.05)


def _prepared(db: sqlite3.Connection, mode: str) -> sqlite3.Connection:
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            db.execute(RUNS)
        else:
            _checked(db)
        if _version(db) < SCHEMA_VERSION:
            for table in CAMPAIGNS:
                db.execute(table)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        db.execute("COMMIT")
    db.execute(f"PRAGMA journal_mode = {mode}")
    return db


def _open_to_read(path: Path) -> sqlite3.Connection:
    address = path.resolve().as_uri()
    try:
        return _checked(sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=LOCK_SECONDS, isolation_level=None))
    except sqlite3.OperationalError:  # a folder that cannot be written has no room for the write-ahead log's index
        return _checked(sqlite3.connect(f"{address}?immutable=1", uri=True, isolation_level=None))


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _checked(db: sqlite3.Connection) -> sqlite3.Connection:
    """Refuse what is no store, or is one that only a later polyak understands."""
    version = _version(db)
    if version > SCHEMA_VERSION:
        way_out = "upgrade polyak, or name another store"
        raise sqlite3.DatabaseError(f"a newer polyak wrote it (version {version}, not {SCHEMA_VERSION}); {way_out}")
    if version < 1:
        raise sqlite3.DatabaseError("not a store of polyak; name another file")
    return db
