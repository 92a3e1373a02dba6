"""What nodes and attackers can send: it is dropped and named, the server goes on, and the rest learn as without it."""

import io
import re

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from polyak.federated import rules
from polyak.federated.flower.records import to_record
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, changed, client_of, largest, strategy_of
from tests.federated.problems import federation

BAD = 2
"""The node that misbehaves."""
RULE = rules.SCAFFOLDM(local_steps=2)


def entry(reply: Message, array: Array) -> Message:
    """A reply in which one array of the update is another."""
    update = ArrayRecord(dict(reply.content.array_records["update"]))
    update["0.weight"] = array
    return changed(reply, update=update)


def numpy_file(values: np.ndarray, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=pickled)
    return file.getvalue()


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float64", shape=(6, 4), stype=stype, data=data)


GOOD = numpy_file(np.zeros((6, 4)))
HUGE = GOOD.replace(b"(6, 4), }      ", b"(6, 4000000), }")
NESTED = GOOD[:10] + b"(" * 110 + GOOD[120:]


class Touched:
    """Leaves a trace when it is unpickled."""

    traces: list[str] = []

    def __reduce__(self):
        return Touched.traces.append, ("unpickled",)


FAULTS = {
    "not a number": (lambda r: entry(r, Array(np.full((6, 4), np.nan))), "not finite"),
    "infinite": (lambda r: entry(r, Array(np.full((6, 4), np.inf))), "not finite"),
    "another shape": (lambda r: entry(r, Array(np.zeros((4, 6)))), r"\(4, 6\)"),
    "another dtype": (lambda r: entry(r, Array(np.zeros((6, 4), np.float32))), "float32"),
    "another byte order": (lambda r: entry(r, Array(np.zeros((6, 4), ">f8"))), ">f8"),
    "objects": (lambda r: entry(r, raw(numpy_file(np.array([[Touched()] * 4] * 6), True))), "object|bytes"),
    "a pickle": (lambda r: entry(r, raw(b"\x80\x04N.", "numpy.ndarray")), "header"),
    "another serialization": (lambda r: entry(r, raw(GOOD, "pickle")), "serialized as"),
    "a zip": (lambda r: entry(r, raw(b"PK\x03\x04" + GOOD)), "header"),
    "cut off": (lambda r: entry(r, raw(GOOD[:-1])), "bytes of values"),
    "too long": (lambda r: entry(r, raw(GOOD + b"0")), "bytes of values"),
    "oversized": (lambda r: entry(r, raw(GOOD + bytes(10**7))), "bytes, more than"),
    "a header that claims much": (lambda r: entry(r, raw(HUGE)), "4000000"),
    "a header that is no header": (lambda r: entry(r, raw(NESTED)), "header"),
    "nothing": (lambda r: entry(r, raw(b"")), "header"),
    "a name more": (lambda r: more(r), "has the names"),
    "a set less": (lambda r: changed(r, control=None), "has the arrays"),
    "a set more": (lambda r: changed(r, other=ArrayRecord()), "has the arrays"),
    "another round": (lambda r: changed(r, polyak=ConfigRecord({"round": 7, "steps": 2})), "of round 7"),
    "a round that is none": (lambda r: changed(r, polyak=ConfigRecord({"round": "0", "steps": 2})), "whole number"),
    "no steps": (lambda r: changed(r, polyak=ConfigRecord({"round": 0, "steps": 0})), "steps is 0"),
    "no examples": (lambda r: changed(r, metrics=MetricRecord({"num-examples": 0})), "num-examples"),
    "too many examples": (lambda r: changed(r, metrics=MetricRecord({"num-examples": 1e300})), "num-examples"),
    "examples in a list": (lambda r: changed(r, metrics=MetricRecord({"num-examples": [1]})), "num-examples"),
    "examples not a number": (lambda r: changed(r, metrics=MetricRecord({"num-examples": float("nan")})), "nan"),
    "no metrics": (lambda r: changed(r, metrics=None), "MetricRecords"),
    "two metrics": (lambda r: changed(r, more=MetricRecord({"num-examples": 3})), "2 MetricRecords"),
    "empty": (lambda r: emptied(r), "MetricRecords"),
    "plain": (lambda r: changed(r, polyak=None), "needs nodes with"),
    "twice": (lambda r: [r, r], "several"),
}  # fmt: skip


def more(reply: Message) -> Message:
    return changed(reply, update=to_record({**reply.content["update"].to_torch_state_dict(), "x": torch.zeros(1)}))


def emptied(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


def from_bad(change, rounds=(1,)):
    return lambda node, round, reply: change(reply) if node == BAD and round in rounds else reply


def as_if_lost(client, strategy, rule=RULE):
    """The engine in one process, with the replies lost that Flower's strategy did not use."""
    run = federation(rule)
    for k, found in enumerate(strategy.rounds):
        lost = [n - 1 for n in found.selected if n not in found.accepted]
        run.round([n - 1 for n in found.selected], silent=lost, batches={n: client.drawn[n, k] for n in run.clients})
    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_dropped_and_named_and_changes_nothing_else(name):
    change, words = FAULTS[name]
    client, strategy = client_of(RULE), strategy_of(RULE)
    result = strategy.start(FakeGrid(app_of(client), intercept=from_bad(change)), arrays_of(), num_rounds=3)
    first = strategy.rounds[0]
    assert list(first.dropped) == [BAD]
    assert re.search(words, first.dropped[BAD]), first.dropped
    assert len(first.dropped[BAD]) < 300
    assert [len(one.accepted) for one in strategy.rounds] == [4, 5, 5]
    assert not Touched.traces
    run = as_if_lost(client, strategy)
    assert largest(result.arrays, run.state.sets["arrays"]) == 0, "the node's state must be as if it had not worked"


def test_lost_replies_and_stragglers():
    client, strategy = client_of(RULE), strategy_of(RULE)
    client.steps = {(3, 0): 1, (4, 1): 1}
    grid = FakeGrid(app_of(client), intercept=lambda n, r, reply: None if (n, r) in ((1, 1), (3, 2)) else reply)
    result = strategy.start(grid, arrays_of(), num_rounds=3)
    assert [one.silent for one in strategy.rounds] == [[1], [3], []]
    run = as_if_lost(client, strategy)
    assert largest(result.arrays, run.state.sets["arrays"]) == 0


def test_answers_of_another_round_are_dropped():
    old = {}

    def replay(node, round, reply):
        old.setdefault(node, reply)
        return old[node] if node == BAD else reply

    client, strategy = client_of(RULE), strategy_of(RULE)
    strategy.start(FakeGrid(app_of(client), intercept=replay), arrays_of(), num_rounds=3)
    assert [one.dropped for one in strategy.rounds[1:]] == [
        {BAD: "the reply is of round '1', not '2'"}, {BAD: "the reply is of round '1', not '3'"}
    ]  # fmt: skip


def test_answers_of_nodes_that_were_not_asked_are_dropped():
    rule = rules.FedAvg(local_steps=1)
    client, strategy = client_of(rule), strategy_of(rule, fraction_train=0.4)

    def stray(node, round, reply):
        other = Message(reply.content, reply_to=Message(RecordDict(), dst_node_id=99, message_type="train"))
        return [reply, other]

    strategy.start(FakeGrid(app_of(client), intercept=stray), arrays_of(), num_rounds=1)
    assert strategy.rounds[0].dropped == {99: "sent several replies"}
    assert len(strategy.rounds[0].accepted) == 2


def test_a_round_without_a_usable_reply_is_lost_and_the_next_begins_where_it_began():
    client, strategy = client_of(RULE), strategy_of(RULE)
    grid = FakeGrid(app_of(client), intercept=lambda n, r, reply: None if r == 2 else reply)
    result = strategy.start(grid, arrays_of(), num_rounds=3)
    assert [len(one.accepted) for one in strategy.rounds] == [5, 0, 5]
    other = strategy_of(RULE)
    without = other.start(FakeGrid(app_of(client_of(RULE))), arrays_of(), num_rounds=2)
    assert largest(result.arrays, without.arrays.to_torch_state_dict()) == 0


def test_finite_replies_cannot_make_an_infinite_model():
    rule = rules.FedAvgM(local_steps=2, server_lr=10.0)
    large = from_bad(lambda r: entry(r, Array(np.full((6, 4), 1.7e308))), rounds=(2,))
    runs = [strategy_of(rule).start(FakeGrid(app_of(client_of(rule)), intercept=i), arrays_of(), num_rounds=n)
            for i, n in ((large, 3), (None, 2))]  # fmt: skip
    assert largest(runs[0].arrays, runs[1].arrays.to_torch_state_dict()) == 0


def test_nodes_that_die_for_good_do_not_stop_the_others():
    client, strategy = client_of(RULE), strategy_of(RULE)
    strategy.start(FakeGrid(app_of(client), fails={r: [1, 2, 3] for r in (2, 3)}), arrays_of(), num_rounds=3)
    assert strategy.rounds[1].dropped == dict.fromkeys([1, 2, 3], "failed: the node died")
    assert [len(one.accepted) for one in strategy.rounds] == [5, 2, 2]


def test_metrics_that_differ_do_not_spoil_those_of_the_others():
    def spoil(node, round, reply):
        loss = {BAD: [1.0, 2.0], 4: float("nan")}.get(node, 2.0)
        return changed(reply, metrics=MetricRecord({"num-examples": 3, "loss": loss}))

    client, strategy = client_of(RULE), strategy_of(RULE, fraction_evaluate=1.0)
    result = strategy.start(FakeGrid(app_of(client), intercept=spoil), arrays_of(), num_rounds=1)
    assert len(strategy.rounds[0].accepted) == 5
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.0}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"loss": 2.0}
