"""Every edit of a ledger is found, and named."""

import json
import os
import sqlite3
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak import cli
from polyak.federated.ledger import Head, Ledger, LedgerError, Tampered, verify
from polyak.federated.ledger.chain import body_of, entry_of
from polyak.federated.ledger.exact import canonical, sha256
from tests.federated.ledger.rounds import filled, run_round, terms

COLUMNS = ("previous", "body", "hash")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def path(tmp_path, whole):
    (tmp_path / "ledger.db").write_bytes(whole.read_bytes())
    return tmp_path / "ledger.db"


def edit(path, *statements):
    """Statements with the triggers out of the way, and back again."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement, *values in statements:
        db.execute(statement, values)
    for _, sql in triggers:
        db.execute(sql)
    db.close()


def rows(path):
    with sqlite3.connect(path) as db:
        return db.execute("SELECT * FROM entries ORDER BY position").fetchall()


def fault_of(path, head=None):
    with pytest.raises(Tampered) as caught:
        verify(path, head)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(Tampered):
        Ledger(path, head)
    return caught.value.fault, caught.value.entry


@settings(max_examples=150)
@given(data=st.data())
def test_any_byte_of_any_field_that_is_edited_is_found_and_named(whole, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "edited.db"
    path.write_bytes(whole.read_bytes())
    entries = rows(path)
    index, column = data.draw(st.integers(0, len(entries) - 1)), data.draw(st.sampled_from(COLUMNS))
    value = entries[index][1 + COLUMNS.index(column)].encode()
    place, byte = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(1, 255))
    changed = value[:place] + bytes([value[place] ^ byte]) + value[place + 1 :]
    edit(path, (f"UPDATE entries SET {column} = CAST(? AS TEXT) WHERE position = ?", changed, index))
    assert fault_of(path) == ("changed", index)


@settings(max_examples=30)
@given(place=st.integers(0), byte=st.integers(1, 255))
def test_a_byte_of_the_file_is_found_or_changes_nothing(whole, tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "bytes.db"
    right = whole.read_bytes()
    place %= len(right)
    path.write_bytes(right[:place] + bytes([right[place] ^ byte]) + right[place + 1 :])
    try:
        found = verify(path)
    except LedgerError as error:
        assert str(path) in str(error)
    else:
        path.write_bytes(whole.read_bytes())
        assert found == verify(path)


@given(st.integers(0, 15), st.integers(0, 15))
@settings(max_examples=30)
def test_two_entries_that_change_places_are_found(whole, tmp_path_factory, one, other):
    if one == other:
        return
    path = tmp_path_factory.getbasetemp() / "moved.db"
    path.write_bytes(whole.read_bytes())
    move = "UPDATE entries SET position = ? WHERE position = ?"
    edit(path, (move, -1, one), (move, one, other), (move, other, -1))
    assert fault_of(path) == ("reordered", min(one, other))


@pytest.mark.parametrize("index", [0, 7, 14])
@pytest.mark.parametrize("renumbered", [False, True])
def test_an_entry_that_is_removed_is_named(path, index, renumbered):
    again = [("UPDATE entries SET position = ? WHERE position = ?", k - 1, k) for k in range(index + 1, 16)]
    edit(path, ("DELETE FROM entries WHERE position = ?", index), *(again if renumbered else []))
    assert fault_of(path) == ("removed", index)


@pytest.mark.parametrize("copied", [5, 12])
def test_an_entry_that_is_put_in_is_named(path, copied):
    away = [("UPDATE entries SET position = ? WHERE position = ?", k + 1, k) for k in range(15, 8, -1)]
    _, *row = rows(path)[copied]
    edit(path, *away, ("INSERT INTO entries VALUES (9, ?, ?, ?)", *row))
    assert fault_of(path)[0] in ("inserted", "reordered")
    assert fault_of(path)[1] == 9


def chained(path, index, body):
    """Whatever follows a body that is put at a place, with all hashes computed anew."""
    found = rows(path)
    before, statements = found[index][1], []
    for k, content in enumerate([body, *(row[2] for row in found[index + 1 :])], index):
        after = sha256(before, content)
        change = "UPDATE entries SET previous = ?, body = ?, hash = ? WHERE position = ?"
        statements.append((change, before, content, after, k))
        before = after
    return statements


def test_a_forged_entry_with_the_right_hash_does_not_lead_on(path):
    away = [("UPDATE entries SET position = ? WHERE position = ?", k + 1, k) for k in range(15, 8, -1)]
    previous, body = rows(path)[9][1:3]
    forged = body.replace('"agent":"bob"', '"agent":"cy"').replace('"agent":"ann"', '"agent":"cy"')
    edit(path, *away, ("INSERT INTO entries VALUES (9, ?, ?, ?)", previous, forged, sha256(previous, forged)))
    assert fault_of(path)[1] == 9


def test_payments_that_the_rules_do_not_give_are_found_in_a_whole_chain(path):
    body = rows(path)[15][2]
    edit(path, *chained(path, 15, body.replace('"ann":"222","bob":"111"', '"ann":"221","bob":"112"')))
    assert fault_of(path) == ("refused", 15)


def test_a_contribution_changed_with_all_later_hashes_is_found_by_the_payments_it_gives(path):
    body = rows(path)[13][2]
    assert '"ann":"0.5"' in body
    edit(path, *chained(path, 13, body.replace('"ann":"0.5"', '"ann":"0.05"')))
    assert fault_of(path) == ("refused", 15)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.replace(":", ": ", 1),
        lambda b: "[" * 100_000,
        lambda b: '{"index":3}',
        lambda b: b.replace('"data":{}', '"data":{"a":1.5}'),
    ],
)
def test_what_is_no_entry_is_named(path, change):
    edit(path, *chained(path, 3, change(rows(path)[3][2])))
    assert fault_of(path) == ("changed", 3)


def test_a_ledger_that_ends_early_is_found_by_a_known_head(path):
    head = Ledger(path).head
    edit(path, ("DELETE FROM entries WHERE position >= 14",))
    assert verify(path).head.entries == 14
    assert fault_of(path, str(head)) == ("truncated", 14)
    assert fault_of(path, head.hash) == ("truncated", None)


def test_a_ledger_that_was_written_anew_is_found_by_a_known_head(path, tmp_path):
    head = Ledger(path).head
    other = Ledger.create(tmp_path / "other.db", terms())
    run_round(other, {"ann": 1.0, "bob": 0.25, "cy": 0.0}, register=("ann", "bob", "cy"))
    assert fault_of(other.path, str(head)) == ("rewritten", 15)
    assert fault_of(other.path, f"0:{head.hash}") == ("rewritten", None)


def test_a_known_head_may_have_grown(path):
    ledger = Ledger(path)
    head = ledger.head
    ledger.register("dan")
    for known in (str(head), head.hash, str(ledger.head)):
        assert verify(path, known).head == ledger.head
    assert Head.read(str(head)) == head
    for text in ("", "12", "x:" + head.hash, head.hash.upper(), "-1:" + head.hash):
        with pytest.raises(ValueError, match="head must be"):
            verify(path, text)


def test_a_ledger_changed_behind_the_back_of_an_open_one_is_refused(path):
    ledger = Ledger(path)
    edit(path, ("DELETE FROM entries WHERE position >= 14",))
    with pytest.raises(Tampered, match="entry 14 is removed"):
        ledger.register("dan")
    with pytest.raises(Tampered):
        _ = ledger.state


def test_the_configuration(path):
    with sqlite3.connect(path) as db:
        text = db.execute("SELECT text FROM configuration").fetchone()[0]
    richer = text.replace('"pool":"1000"', '"pool":"9000"')
    edit(path, ("UPDATE configuration SET text = ?", richer))
    assert fault_of(path) == ("changed", None)
    edit(path, ("UPDATE configuration SET hash = ?", sha256(richer)))
    assert fault_of(path) == ("changed", 0)
    for odd in (canonical({"pool": "1"}), "{", canonical([])):
        edit(path, ("UPDATE configuration SET text = ?, hash = ?", odd, sha256(odd)))
        assert fault_of(path) == ("changed", None)


def test_only_appending_is_possible_without_intent(path):
    with sqlite3.connect(path) as db:
        for statement in ("UPDATE entries SET body = ''", "DELETE FROM entries", "DELETE FROM configuration"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended"):
                db.execute(statement)


@pytest.mark.parametrize("statement", ["DROP TRIGGER no_delete_of_entries", "CREATE TABLE more (x)"])
def test_tables_and_triggers(path, statement):
    with sqlite3.connect(path) as db:
        db.execute(statement)
    assert fault_of(path) == ("changed", None)


def test_what_is_no_ledger(tmp_path):
    (tmp_path / "text.db").write_text("no database at all, and long enough to see that" * 50)
    (tmp_path / "empty.db").write_bytes(b"")
    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("CREATE TABLE entries (position, previous, body, hash)")
    for name, words in (
        ("text.db", "not a database"),
        ("empty.db", "no ledger of polyak"),
        ("foreign.db", "no ledger of polyak"),
        ("nowhere.db", "there is no ledger"),
        ("", "there is no ledger"),
    ):
        with pytest.raises(LedgerError, match=words):
            verify(tmp_path / name)
    assert not (tmp_path / "nowhere.db").exists()


def test_a_newer_ledger(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="a newer polyak wrote it"):
        verify(path)


def test_a_ledger_that_nobody_may_write_can_be_verified(path):
    path.chmod(0o444)
    assert verify(path).head.entries == 16
    if not os.access(path, os.W_OK):  # root may
        with pytest.raises(LedgerError, match="readonly"):
            Ledger(path).register("dan")


def test_an_entry_is_its_text(path):
    for _, _, body, _ in rows(path):
        assert body_of(entry_of(body)) == body and json.loads(body)["index"] == entry_of(body).index


def test_an_entry_before_the_first_is_named(path):
    edit(path, ("INSERT INTO entries SELECT -5, previous, body, hash FROM entries WHERE position = 3",))
    assert fault_of(path) == ("inserted", -5)


def test_a_hole_behind_the_back_of_an_open_ledger_is_refused(path):
    ledger = Ledger(path)
    Ledger(path).register("dan")
    edit(path, ("DELETE FROM entries WHERE position = 15",))
    with pytest.raises(Tampered, match="entry 15 is not the known one"):
        ledger.register("eve")


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command in this process: its exit code, output and errors."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["polyak", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return command


def test_the_command_line(path, command):
    head = str(Ledger(path).head)
    code, shown, _ = command("ledger", "verify", path, "--head", head)
    assert code == 0 and f"head: {head}" in shown and "paid: ann 222, bob 111, cy 0" in shown
    edit(path, ("UPDATE entries SET body = replace(body, 'bob', 'bib') WHERE position = 5",))
    code, _, error = command("ledger", "verify", path)
    assert (code, error.count("\n")) == (1, 1) and "entry 5 is changed" in error
    for arguments, words in (
        ((path, "--head", "xyz"), "--head must be"),
        ((path.with_name("nowhere.db"),), "there is no ledger"),
    ):
        code, _, error = command("ledger", "verify", *arguments)
        assert (code, error.count("\n")) == (2, 1) and words in error
