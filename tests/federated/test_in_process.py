"""The engine: both modes alike, resumed bit for bit, buffers, dropout, stragglers, frozen weights."""

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyak.federated import aggregators, rules
from polyak.federated.rules import Message
from tests.federated.problems import apart, data, federation, network

BATCHED = [n for n in rules.names() if rules.get(n).batched]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", BATCHED)
def test_many_clients_at_once_are_the_same_as_one_by_one(name, norm):
    rule = rules.get(name)(participation=0.8, local_steps=3)
    one, all_at_once = (
        federation(rule, model=network(norm=norm), mode=mode, chunk=2) for mode in ("loop", "vmap")
    )  # fmt: skip
    for run in (one, all_at_once):
        run.round(steps={1: 1}, selected=[0, 1, 2, 3])
        run.run(2)
    assert apart(one, all_at_once) < 1e-12
    for c, state in one.states.items():
        for s, tensors in state.sets.items():
            for n, t in tensors.items():
                torch.testing.assert_close(all_at_once.states[c].sets[s][n], t, rtol=0, atol=1e-12)


@given(
    clients=st.integers(1, 6), steps=st.integers(1, 4), batch=st.integers(1, 20), chunk=st.integers(1, 7),
    name=st.sampled_from(BATCHED),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_modes_agree_whatever_the_sizes(clients, steps, batch, chunk, name):
    rule = rules.get(name)(participation=1.0, local_steps=steps)
    runs = [federation(rule, data(clients), batch_size=batch, mode=m, chunk=chunk) for m in ("loop", "vmap")]
    for run in runs:
        run.run(2)
    assert apart(*runs) < 1e-12


@pytest.mark.parametrize("name", rules.names())
def test_a_saved_run_goes_on_bit_for_bit(name):
    h = {} if "dp_" in name else {"local_steps": 2, "participation": 0.6}
    rule = rules.get(name)(**h)
    whole, first, second = (federation(rule) for _ in range(3))
    whole.run(5)
    first.run(2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.run(3)
    assert apart(whole, second) == 0
    assert whole.states.keys() == second.states.keys()
    for c, state in whole.states.items():
        for s, tensors in state.sets.items():
            assert all(torch.equal(t, second.states[c].sets[s][n]) for n, t in tensors.items())


def test_dropout_is_drawn_alike_and_leaves_torchs_generator_alone():
    rule = rules.FedAvgMVR(local_steps=2)
    one, other = (federation(rule, model=network(dropout=0.5)) for _ in range(2))
    one.run(2)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    other.run(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert apart(one, other) == 0


def test_the_second_gradient_of_a_batch_has_the_same_dropout():
    run = federation(rules.FedAvgMVR(), model=network(dropout=0.5))
    weights, (batch, *_) = run.state.sets["arrays"], run._drawn(0)
    again = [run.gradient(weights, {}, batch)[0] for _ in range(2)]
    assert all(torch.equal(again[0][n], again[1][n]) for n in weights)


def test_dropout_is_refused_where_clients_are_mapped_over():
    with pytest.raises(RuntimeError, match="randomness"):
        federation(rules.FedAvg(), model=network(dropout=0.5), mode="vmap").round()


def test_buffers_are_averaged_and_whole_numbers_kept():
    rule = rules.FedAvgMVR(local_steps=3, momentum=0.5)
    run = federation(rule, model=network(norm=True))
    sent = []
    run.round()
    run.round(intercept=lambda c, m: sent.append(m.sets["buffers"]) or m)
    held = run.state.sets["buffers"]
    mean = torch.stack([b["1.running_mean"] for b in sent]).mean(0)
    torch.testing.assert_close(held["1.running_mean"], mean, rtol=0, atol=1e-15)
    assert int(held["1.num_batches_tracked"]) == 0
    assert all(int(b["1.num_batches_tracked"]) == 3 for b in sent), "the second gradient must not count"


@pytest.mark.parametrize("name", ["fedavg", "fedavg_m", "scaffold", "fedswa", "fedmoswa"])
def test_a_robust_aggregator_guards_buffers_too(name):
    """Five clients, one lies in its statistics alone: each entry is the median of what was sent."""
    rule = rules.get(name)(local_steps=2, participation=1.0, aggregator=aggregators.Median())
    run = federation(rule, model=network(norm=True), batch_size=3)
    sent = []

    def lie(c, m):
        buffers = {n: b + 1e6 if c == 3 and b.is_floating_point() else b for n, b in m.sets["buffers"].items()}
        sent.append(buffers)
        return Message(m.round, {**m.sets, "buffers": buffers}, m.scalars)

    assert not run.round(intercept=lie).dropped
    for n in ("1.running_mean", "1.running_var"):
        want = torch.stack([b[n] for b in sent]).median(0).values
        assert torch.equal(run.state.sets["buffers"][n], want)
        assert float(want.abs().max()) < 100


@pytest.mark.parametrize("rule", [rules.FedAvg(local_steps=1), rules.SCAFFOLD(local_steps=1)])
def test_a_negative_variance_drops_the_reply(rule):
    run = federation(rule, model=network(norm=True))

    def lie(c, m):
        buffers = {n: -b if n == "1.running_var" else b for n, b in m.sets["buffers"].items()}
        return Message(m.round, {**m.sets, "buffers": buffers}, m.scalars) if c == 3 else m

    found = run.round(intercept=lie)
    assert found.dropped.keys() == {3}
    assert "1.running_var" in found.dropped[3]


def test_the_model_is_left_alone_and_can_take_the_result():
    model = network(norm=True)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    run = federation(rules.FedAvg(local_steps=2), model=model)
    run.run(2)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    run.load_into(model)
    assert torch.equal(model[0].weight, run.state.sets["arrays"]["0.weight"])
    assert torch.equal(model[1].running_mean, run.state.sets["buffers"]["1.running_mean"])


def test_frozen_weights_do_not_travel():
    model = network()
    model[0].requires_grad_(False)
    run = federation(rules.SCAFFOLDM(local_steps=2), model=model)
    run.run(2)
    assert set(run.state.sets["control"]) == {"3.weight", "3.bias"}


def test_silent_and_lost_clients_keep_their_states():
    run = federation(rules.SCAFFOLD(local_steps=2))
    first = run.round()
    assert first.fresh == list(run.clients)
    kept = {c: run.states[c] for c in (1, 3)}
    found = run.round(silent=[1], intercept=lambda c, m: None if c == 3 else m)
    assert found.silent == [1, 3]
    assert found.accepted == [0, 2, 4]
    assert found.fresh == []
    assert all(run.states[c] is state for c, state in kept.items())


def test_names_can_be_ids():
    clients = {f"hospital {i}": one for i, one in data().items()}
    run = federation(rules.FedMoSWA(local_steps=2, participation=0.5), clients)
    assert set(run.run(3)[-1].selected) <= set(clients)


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    run = federation(rules.SCAFFOLD(local_steps=1))
    run.run(2)
    saved, before = run.state_dict(), run.state
    server = saved["server"]
    lost = {c: s for c, s in saved["clients"].items() if c != 2}
    few = {**server, "counters": {**server["counters"], "clients": 3}}
    small = {**server, "sets": {**server["sets"], "control": {"w": torch.zeros(2)}}}
    cases = {
        "must be of SCAFFOLD": {"rule": repr(rules.FedAvg())},
        r"local_steps=1.* got .*local_steps=2": {"rule": repr(rules.SCAFFOLD(local_steps=2))},
        r"\[2\] are missing": {"clients": lost},
        "none called": {"clients": {**saved["clients"], 77: saved["clients"][0]}},
        "5 clients, got 3": {"server": few},
        "control of the state": {"server": small},
    }
    for words, change in cases.items():
        with pytest.raises(ValueError, match=words):
            run.load_state_dict({**saved, **change})
    assert run.state is before


def test_a_loaded_state_is_a_copy():
    run, other = (federation(rules.SCAFFOLD(local_steps=1)) for _ in range(2))
    run.run(2)
    saved = run.state_dict()
    other.load_state_dict(saved)
    for tensors in saved["server"]["sets"].values():
        for tensor in tensors.values():
            tensor.zero_()
    assert any(tensor.any() for tensor in other.state.sets["arrays"].values())


def test_nothing_of_a_message_is_changed():
    rule = rules.SCAFFOLDM(local_steps=2)
    run = federation(rule)
    run.round()
    message = rule.broadcast(run.state)
    copied = {s: {n: t.clone() for n, t in tensors.items()} for s, tensors in message.sets.items()}
    rule.client_update(run.gradient, run.states[0], message, run._drawn(0))
    rule.aggregate(
        run.state, [(0, replace(rule.client_update(run.gradient, run.states[0], message, run._drawn(0))[0]))]
    )
    for s, tensors in copied.items():
        assert all(torch.equal(t, message.sets[s][n]) for n, t in tensors.items())


def test_losses_of_ones_own():
    clients = {i: (x, x[:, :1] * 2) for i, (x, _) in data().items()}
    run = federation(rules.FedAvg(local_lr=0.1), clients, nn.Linear(4, 1).double(), loss=nn.functional.mse_loss)
    run.run(60)
    torch.testing.assert_close(
        run.state.sets["arrays"]["weight"], torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64), rtol=0, atol=1e-3
    )
