"""The life of a contract: what it pays, what it refuses, and several processes on one file."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from polyak.federated.ledger import (
    Contract,
    Ledger,
    LedgerError,
    Refused,
    State,
    Terms,
    advance,
    commitment,
    decimal_text,
    hash_tensors,
    verify,
)
from tests.federated.ledger.rounds import AGENTS, MODEL, filled, run_round, salt_of, terms, update_of


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger.db", terms())


def test_rounds_pay_by_the_average_of_contributions(ledger):
    assert isinstance(ledger, Contract)
    paid = run_round(ledger, {"ann": 3, "bob": 1.0, "cy": -1}, register=AGENTS)
    assert paid == {"ann": 250, "bob": 83, "cy": 0}
    shares = {"ann": Fraction(1), "bob": (Fraction(1, 4) * 1 + Fraction(1, 2) * 3) / Fraction(3, 4)}  # ema 0.5
    shares["ann"] = (Fraction(1, 4) * 3 + Fraction(1, 2) * 1) / Fraction(3, 4)
    paid = run_round(ledger, {"ann": 1, "bob": 3})
    total = sum(shares.values())
    assert paid["cy"] == 0 and sum(paid.values()) == 333 and abs(paid["ann"] - 333 * shares["ann"] / total) < 1
    assert run_round(ledger, {}) == {"ann": 0, "bob": 0, "cy": 0}
    state = ledger.state
    assert (state.phase, state.round, state.carried) == ("over", 3, 1000 - sum(state.balances.values()))
    with pytest.raises(Refused, match="all 3 rounds are over"):
        ledger.register("dan")


def test_whoever_replays_the_entries_comes_to_the_same(tmp_path):
    path = filled(tmp_path)
    ledger, state = Ledger(path), State()
    for entry in ledger.entries():
        state = advance(ledger.terms, state, entry)
    assert state == ledger.state == verify(path, str(ledger.head)).state
    assert Ledger(path).terms == terms()
    lines = [json.loads(line) for line in ledger.json_lines()]
    assert [json.loads(line["body"])["kind"] for line in lines[1:]] == [e.kind for e in ledger.entries()]
    assert lines[1]["previous"] == lines[0]["hash"] and f"{len(lines) - 1}:{lines[-1]['hash']}" == str(ledger.head)


def test_an_empty_round_rolls_over(ledger):
    run_round(ledger, {}, register=AGENTS)
    assert ledger.state.carried == 333
    assert sum(run_round(ledger, {"ann": 1}).values()) == 666


def test_stakes_are_lost_by_a_failed_reveal_and_by_harm(tmp_path):
    ledger = Ledger.create(tmp_path / "x.db", terms(stake=40, slash=0.5, strikes=2, ema=0.0))
    run_round(ledger, {"ann": 1, "bob": -1}, register=AGENTS, silent=["cy"])
    assert {k: m.stake for k, m in ledger.state.members.items()} == {"ann": 40, "bob": 40, "cy": 20}
    assert ledger.state.carried == 20
    assert run_round(ledger, {"ann": 1, "bob": -1})["ann"] == 353
    assert ledger.state.members["bob"].stake == 20 and ledger.state.members["bob"].reputation.below == 0


def show(ledger, agent, update, salt):
    """One round in which an agent shows an update, and is paid."""
    ledger.close()
    ledger.commit(agent, commitment(update, salt))
    ledger.close()
    ledger.reveal(agent, update, salt)
    ledger.close()
    ledger.aggregate(MODEL, {agent: update})
    ledger.evaluate("eve", {agent: 1})
    ledger.close()
    return int(ledger.reward().data[agent])


def test_an_update_of_another_agent_is_not_paid_again(ledger):
    for agent in AGENTS:
        ledger.register(agent)
    assert show(ledger, "ann", MODEL, salt_of("ann")) == 333
    for salt in (salt_of("ann"), salt_of("bob")):
        copy = Ledger.create(ledger.path.with_name(f"{salt[-4:]}.db"), terms())
        for agent in AGENTS:
            copy.register(agent)
        show(copy, "ann", MODEL, salt_of("ann"))
        with pytest.raises(Refused, match="'bob' must not repeat an update of another agent from an earlier round"):
            show(copy, "bob", MODEL, salt)
        assert verify(copy.path).state == copy.state
    assert show(ledger, "ann", MODEL, salt_of("ann")) == 333, "one's own may stay as it was"


def test_evaluators_that_disagree_are_recorded_and_their_median_counts(tmp_path):
    ledger = Ledger.create(tmp_path / "x.db", terms(rounds=1, evaluators=("e", "f", "g")))
    for agent in AGENTS:
        ledger.register(agent)
    ledger.close()
    for agent in AGENTS:
        ledger.commit(agent, commitment(update_of(agent), salt_of(agent)))
    ledger.close()
    for agent in AGENTS:
        ledger.reveal(agent, update_of(agent), salt_of(agent))
    ledger.close()
    ledger.aggregate(MODEL, {agent: update_of(agent) for agent in AGENTS})
    for evaluator, ann in (("e", 2.0), ("f", 1e9), ("g", 2.0 + 1e-12)):
        ledger.evaluate(evaluator, {"ann": ann, "bob": 2.0 + 1e-12, "cy": 0})
    ledger.close()
    with pytest.warns(UserWarning, match=r"disagree on \['ann'\] in round 0; their median"):
        paid = ledger.reward()
    assert dict(paid.data) == {"ann": "500", "bob": "500", "cy": "0"}
    assert ledger.state.disputed == ((0, "ann"),)


def at_phase(ledger, phase):
    """Bring a ledger of ann, who takes part, and bob, who does not, to a phase."""
    steps = {
        "open": lambda: (ledger.register("ann"), ledger.register("bob")),
        "commit": ledger.close,
        "reveal": lambda: (ledger.commit("ann", commitment(update_of("ann"), salt_of("ann"))), ledger.close()),
        "aggregate": lambda: (ledger.reveal("ann", update_of("ann"), salt_of("ann")), ledger.close()),
        "evaluate": lambda: ledger.aggregate(MODEL, {"ann": update_of("ann")}),
        "reward": lambda: (ledger.evaluate("eve", {"ann": 1}), ledger.close()),
    }
    for name, step in steps.items():
        step()
        if name == phase:
            return


REFUSED = [
    ("open", lambda x: x.register("ann"), "'ann' is registered already"),
    ("open", lambda x: x.register(""), "name of 1 to 200"),
    ("open", lambda x: x.commit("ann", MODEL), "phase must be commit, it is open"),
    ("commit", lambda x: x.register("cy"), "phase must be open, it is commit"),
    ("commit", lambda x: x.commit("cy", MODEL), "'cy' is not registered"),
    ("commit", lambda x: x.commit("ann", "abc"), "payload must be 64 hexadecimal digits, got 'abc'"),
    ("commit", lambda x: (x.commit("ann", MODEL), x.commit("ann", MODEL)), "has committed in round 0 already"),
    ("commit", lambda x: (x.commit("ann", MODEL), x.commit("bob", MODEL)), "must not repeat the commitment"),
    ("reveal", lambda x: x.reveal("bob", MODEL, MODEL), "'bob' has not committed in round 0"),
    ("reveal", lambda x: x.reveal("ann", MODEL, salt_of("ann")), "not what it committed to"),
    ("reveal", lambda x: x.reveal("ann", update_of("ann"), "no salt"), "salt must be 64 hexadecimal digits"),
    ("reveal", lambda x: x.reveal("ann", update_of("ann"), 0.5), "a ledger holds no floats"),
    ("reveal", lambda x: [x.reveal("ann", update_of("ann"), salt_of("ann")) for _ in "12"], "has revealed in round 0"),
    ("aggregate", lambda x: x.aggregate(MODEL, {"bob": MODEL}), "'bob' has not revealed the update"),
    ("aggregate", lambda x: x.aggregate("", {"ann": update_of("ann")}), "payload must be 64 hexadecimal"),
    ("aggregate", lambda x: x.close(), "phase must be open or commit or reveal or evaluate, it is aggregate"),
    ("evaluate", lambda x: x.evaluate("bob", {"ann": 1}), "'bob' is no evaluator"),
    ("evaluate", lambda x: x.evaluate("eve", {}), r"must be of \['ann'\], got those of \[\]"),
    ("evaluate", lambda x: x.evaluate("eve", {"ann": 1, "zed": 1}), r"got those of \['ann', 'zed'\]"),
    ("evaluate", lambda x: x.evaluate("eve", {"ann": float("nan")}), "contribution of 'ann' must be finite, got nan"),
    ("evaluate", lambda x: [x.evaluate("eve", {"ann": 1}) for _ in "12"], "has evaluated round 0 already"),
    ("evaluate", lambda x: x.close(), "no evaluator has posted yet"),
    ("reward", lambda x: x.evaluate("eve", {"ann": 1}), "phase must be evaluate, it is reward"),
]


@pytest.mark.parametrize(("phase", "act", "words"), REFUSED)
def test_what_the_rules_do_not_allow_is_refused_and_not_written(ledger, phase, act, words):
    at_phase(ledger, phase)
    with pytest.raises(ValueError, match=words):
        act(ledger)
    found = verify(ledger.path)
    assert found.state == ledger.state and found.state.phase == phase


def test_wrong_payments_and_wrong_hands_are_refused(ledger):
    at_phase(ledger, "reward")
    entry = replace(list(ledger.entries())[-1], kind="reward", data={"ann": "332", "bob": "1"})
    with pytest.raises(Refused, match="payments of round 0 must be"):
        advance(ledger.terms, ledger.state, entry)
    with pytest.raises(Refused, match="only the aggregator 'agg' may, not 'ann'"):
        advance(ledger.terms, ledger.state, replace(entry, agent="ann"))
    with pytest.raises(Refused, match="it is round 0, not 1"):
        advance(ledger.terms, ledger.state, replace(entry, round=1))
    with pytest.raises(Refused, match="no kind of entry 'steal'"):
        advance(ledger.terms, ledger.state, replace(entry, kind="steal"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": -1}, "pool must be in"),
        ({"rounds": 0}, "rounds must be in"),
        ({"stake": -1}, "stake must be in"),
        ({"evaluators": ()}, "evaluators must be at least one"),
        ({"evaluators": ("e", "e")}, "each once"),
        ({"sponsor": ""}, "sponsor must be a name"),
    ],
)
def test_terms_that_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Terms(**{"sponsor": "s", "aggregator": "a", "evaluators": ("e",), "pool": 1, "rounds": 1, **change})


def test_a_ledger_is_not_written_over(ledger, tmp_path):
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(ledger.path, terms())
    (tmp_path / "text.txt").write_text("some text, no database" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger.create(tmp_path / "text.txt", terms())
    with pytest.raises(LedgerError, match="cannot create"):
        Ledger.create(tmp_path / "nowhere" / "x.db", terms())


def test_hashes_of_tensors_are_of_names_types_shapes_and_bits():
    made = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones((), dtype=torch.bfloat16), "e": torch.ones(0, 2)}
    same = {name: made[name].clone() for name in ("e", "w", "b")} | {"w": made["w"].T.contiguous().T}
    assert hash_tensors(made) == hash_tensors(same)
    others = [
        made | {"w": made["w"].double()},
        made | {"w": made["w"].reshape(3, 2)},
        made | {"w": made["w"] + torch.tensor([0, 0, 1e-6])},
        made | {"b": -made["b"]},
        {"v" if name == "w" else name: tensor for name, tensor in made.items()},
    ]
    assert len({hash_tensors(one) for one in [made, *others]}) == 6
    with pytest.raises(TypeError, match="'s' must be a dense real tensor"):
        hash_tensors({"s": torch.ones(2, 2).to_sparse()})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (-2, "-2"), (1e-7, "0.0000001"), (-0.0, "0"), (1e22, "1" + "0" * 22), (1e-19, "0"), (True, None)],
)
def test_numbers_have_one_text(value, text):
    if text is None:
        with pytest.raises(TypeError, match="must be a number"):
            decimal_text(value)
    else:
        assert decimal_text(value) == text


APPENDING = """
import sys
from polyak.federated.ledger import Ledger
ledger = Ledger(sys.argv[1])
print("ready", flush=True)
for k in range(int(sys.argv[3])):
    print(ledger.register(f"{sys.argv[2]}{k}").index, flush=True)
"""


def appending(path, name, count):
    command = [sys.executable, "-c", APPENDING, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_append_and_a_reader_verifies_meanwhile(ledger):
    writers = [appending(ledger.path, name, 25) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    seen = []
    while any(writer.poll() is None for writer in writers):
        seen.append(verify(ledger.path).head.entries)
    indices = [int(line) for writer in writers for line in writer.stdout]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(indices) == list(range(50)) and seen == sorted(seen)
    assert set(ledger.state.members) == {f"{name}{k}" for name in "ab" for k in range(25)}


def test_a_writer_that_waits_too_long_says_so(ledger):
    impatient = Ledger(ledger.path, patience=0.05)
    with sqlite3.connect(ledger.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"cannot write the ledger .*locked"):
            impatient.register("ann")
        other.execute("ROLLBACK")
    impatient.register("ann")
    assert list(ledger.state.members) == ["ann"]


def kill_while_appending(path, times):
    """Kill a process that appends, again and again; whatever it had said that it wrote is there."""
    for k in range(times):
        writer = appending(path, f"w{k}-", 10_000)
        said = [writer.stdout.readline() for _ in range(2 + 3 * k % 7)]
        time.sleep(0.0037 * (k % 5))
        os.kill(writer.pid, signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        whole = [int(line) for line in said[1:] if line.endswith("\n")]
        assert verify(path).head.entries in (whole[-1] + 1, whole[-1] + 2)
    Ledger(path).register("after")


def test_a_killed_writer_leaves_a_whole_ledger(ledger):
    kill_while_appending(ledger.path, 3)


@pytest.mark.slow
def test_twenty_killed_writers_leave_a_whole_ledger(ledger):
    kill_while_appending(ledger.path, 20)


def test_what_a_crash_left_half_written_is_taken_back(ledger, tmp_path):
    """A copy of the file and its journal in the middle of a transaction is what a machine that failed leaves."""
    ledger.register("ann")
    with sqlite3.connect(ledger.path, isolation_level=None) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        for k in range(1, 400):
            db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (k, "p", "b" * 500, "h"))
        journal = ledger.path.with_name("ledger.db-journal")
        copy = tmp_path / "copy.db"
        copy.write_bytes(ledger.path.read_bytes())
        copy.with_name("copy.db-journal").write_bytes(journal.read_bytes())
        db.execute("ROLLBACK")
    assert copy.stat().st_size > 100_000
    assert verify(copy, str(ledger.head)).head == ledger.head
