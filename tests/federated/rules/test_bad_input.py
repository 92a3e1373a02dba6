"""What rules refuse, and that a refused call changes nothing."""

import math

import pytest
import torch
from torch import nn

from polyak.federated import InProcess, aggregators, rules
from polyak.federated.rules import Message
from tests.federated.problems import data, federation, network


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("fedavg_m", {"momentum": 1.0}), ("fedavg_m", {"beta": 0.0}), ("fedavg_m", {"beta": 1.5}),
        ("fedavg_m", {"momentum": 0.8, "beta": 0.2}), ("fedavg_m", {"local_lr": 0.0}), ("fedavg_m", {"server_lr": 0.0}),
        ("fedavg_m", {"local_steps": 0}), ("fedavg", {"participation": 0.0}), ("fedavg", {"participation": 1.1}),
        ("fedavg", {"weighting": "examples", "aggregator": aggregators.Median()}),
        ("server_momentum", {"momentum": 1.0}), ("fedswa", {"lr_floor": 0.0}), ("fedswa", {"lr_floor": 1.1}),
        ("fedswa", {"server_lr": 0.0}), ("fedmoswa", {"momentum": 1.0}), ("fedmoswa", {"local_steps": 0}),
        ("dp_brem", {"sample_rate": 0.0}), ("dp_brem", {"client_rate": 1.1}), ("dp_brem", {"momentum": 1.0}),
        ("dp_brem", {"max_grad_norm": 0.0}), ("dp_brem", {"max_grad_norm": None}), ("dp_brem", {"client_clip": 0.0}),
        ("dp_brem", {"noise_multiplier": -1.0}), ("dp_brem_plus", {"client_clip": None}),
        ("dp_brem_plus", {"placement": "ldp"}), ("dp_brem_plus", {"num_honest": 0}),
    ],
)  # fmt: skip
def test_arguments(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        rules.get(kind)(**bad)


def test_an_aggregator_is_one():
    with pytest.raises(TypeError, match="aggregator"):
        rules.FedAvg(aggregator="median")


def test_names():
    assert {rules.get(n).slug for n in rules.names()} == set(rules.names())
    with pytest.raises(ValueError, match=r"server_momentum.*fedavg_m"):
        rules.get("FedAvgM")
    with pytest.raises(ValueError, match="did you mean 'scaffold'"):
        rules.get("scafold")


SPOILED = {
    "not finite": lambda m: Message(m.round, {**m.sets, "update": _with(m, math.nan)}, m.scalars),
    "round 7": lambda m: Message(7, m.sets, m.scalars),
    "has the names": lambda m: Message(m.round, {**m.sets, "update": {"other": torch.zeros(2)}}, m.scalars),
    "float32": lambda m: Message(m.round, {**m.sets, "update": {n: t.float() for n, t in m.sets["update"].items()}}),
    "has the sets": lambda m: Message(m.round, {"update": m.sets["update"]}, m.scalars),
    "not a Message": lambda m: "hello",
    "not a positive number": lambda m: Message(m.round, m.sets, {"examples": math.inf}),
    "not a tensor": lambda m: Message(m.round, {**m.sets, "update": dict.fromkeys(m.sets["update"], 1.0)}),
    "not a dictionary": lambda m: Message(m.round, {**m.sets, "update": 3}),
}


SCALARS = {
    "without the 'examples'": {},
    "examples is 'x', not a positive number": {"examples": "x"},
    "examples is None, not a positive number": {"examples": None},
    "examples is True, not a positive number": {"examples": True},
    f"examples is {10**400}, not a positive number": {"examples": 10**400},
    "examples is nan, not a positive number": {"examples": math.nan},
    "the scalars are list, not a dictionary": ["examples"],
}


@pytest.mark.parametrize("fault", SCALARS)
def test_a_reply_that_cannot_be_weighed_is_dropped_and_named(fault):
    rule = rules.FedAvg(local_steps=1, weighting="examples")
    spoiled, without = federation(rule), federation(rule)
    found = spoiled.round(intercept=lambda c, m: Message(m.round, m.sets, SCALARS[fault]) if c == 2 else m)
    without.round(silent=[2])
    assert fault in found.dropped[2]
    assert all(torch.equal(t, without.state.sets["arrays"][n]) for n, t in spoiled.state.sets["arrays"].items())


def test_replies_that_are_not_weighed_need_no_number_of_records():
    run = federation(rules.FedAvg(local_steps=1))
    assert not run.round(intercept=lambda c, m: Message(m.round, m.sets)).dropped


@pytest.mark.parametrize("name", ["dp_brem", "scaffold", "fedmoswa"])
def test_what_is_done_to_a_reply_on_its_way_does_not_reach_what_the_client_keeps(name):
    rule = rules.get(name)()
    touched, alone = federation(rule), federation(rule)

    def spoil(c, m):
        for tensors in m.sets.values():
            for t in tensors.values():
                t.fill_(1e3)
        return m

    touched.round(intercept=spoil)
    alone.round()
    assert touched.states.keys() == alone.states.keys()
    for c, state in alone.states.items():
        for s, tensors in state.sets.items():
            assert all(torch.equal(t, touched.states[c].sets[s][n]) for n, t in tensors.items())


def _with(message, value):
    return {n: torch.full_like(t, value) for n, t in message.sets["update"].items()}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_bad_reply_is_dropped_and_named_and_the_rest_is_as_if_it_were_silent(fault):
    rule = rules.SCAFFOLDM(local_steps=2)
    spoiled, without = federation(rule), federation(rule)
    spoiled.round()
    without.round()
    kept = spoiled.states[2]
    found = spoiled.round(intercept=lambda c, m: SPOILED[fault](m) if c == 2 else m)
    without.round(silent=[2])
    assert found.dropped.keys() == {2}
    assert fault in found.dropped[2]
    assert 2 not in found.accepted
    assert spoiled.states[2] is kept
    for s, tensors in spoiled.state.sets.items():
        assert all(torch.equal(t, without.state.sets[s][n]) for n, t in tensors.items())


@pytest.mark.parametrize("fault", SPOILED)
def test_without_a_usable_reply_nothing_changes(fault):
    run = federation(rules.SCAFFOLD(local_steps=2))
    run.round()
    state, states = run.state, run.states
    with pytest.raises(ValueError, match="no reply can be used"):
        run.round(intercept=lambda c, m: SPOILED[fault](m))
    assert run.state is state
    assert run.states is states


def test_replies_of_another_model_two_of_one_client_and_none():
    rule = rules.FedAvg(local_steps=1)
    state = rule.server_state({"w": torch.zeros(3)}, 2)
    good = Message(0, {"update": {"w": torch.ones(3)}, "buffers": {}})
    other = Message(0, {"update": {"w": torch.ones(4)}, "buffers": {}})
    found = rule.aggregate(state, [("a", good), ("b", other)])
    assert found.accepted == ["a"]
    assert "(4,)" in found.dropped["b"]
    with pytest.raises(ValueError, match="several of"):
        rule.aggregate(state, [("a", good), ("a", good)])
    with pytest.raises(ValueError, match="got none"):
        rule.aggregate(state, [])
    assert torch.equal(state.sets["arrays"]["w"], torch.zeros(3))


def test_more_liars_than_the_aggregator_stands():
    run = federation(rules.FedAvg(local_steps=1, aggregator=aggregators.TrimmedMean(3)))
    before = run.state
    with pytest.raises(ValueError, match="num_byzantine"):
        run.round()
    assert run.state is before


def test_a_clients_state_of_another_model():
    rule = rules.SCAFFOLD(local_steps=1)
    run = federation(rule)
    run.round()
    run.states[1] = rule.client_state({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="control has the names"):
        run.round()


def test_servers_and_clients_without_anything():
    rule = rules.FedAvg()
    with pytest.raises(ValueError, match="weights"):
        rule.server_state({}, 1)
    with pytest.raises(ValueError, match="num_clients"):
        rule.server_state({"w": torch.zeros(2)}, 0)
    state = rule.server_state({"w": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="batches"):
        rule.client_update(None, rule.client_state({}), rule.broadcast(state), [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"selected": []}, "selected"), ({"selected": [0, 0]}, "once"), ({"selected": [99]}, "99"),
        ({"silent": [99]}, "99"), ({"steps": {99: 1}}, "99"), ({"steps": {0: 0}}, "steps"),
        ({"steps": {0: 50}}, "at most"),
    ],
)  # fmt: skip
def test_rounds(arguments, words):
    run = federation(rules.FedAvg(local_steps=2))
    before = run.state
    with pytest.raises(ValueError, match=words):
        run.round(**arguments)
    assert run.state is before


def test_federations():
    rule, clients = rules.FedAvg(), data()
    with pytest.raises(ValueError, match="at least one"):
        InProcess(rule, network(), {})
    with pytest.raises(ValueError, match="as many inputs as targets"):
        InProcess(rule, network(), {**clients, 1: (clients[1][0], clients[1][1][:-1])})
    with pytest.raises(ValueError, match="at least one"):
        InProcess(rule, network(), {0: (clients[0][0][:0], clients[0][1][:0])})
    with pytest.raises(TypeError, match="whole numbers or strings"):
        InProcess(rule, network(), {(1,): clients[0]})
    with pytest.raises(ValueError, match="mode"):
        InProcess(rule, network(), clients, mode="fast")
    with pytest.raises(ValueError, match="'loop'"):
        InProcess(rules.DPBREM(), network(), clients, mode="vmap")
    with pytest.raises(ValueError, match="BatchNorm1d"):
        InProcess(rules.DPBREM(), network(norm=True), clients)
    assert isinstance(InProcess(rules.DPBREM(noise_multiplier=0.0), nn.Linear(4, 3).double(), clients), InProcess)
