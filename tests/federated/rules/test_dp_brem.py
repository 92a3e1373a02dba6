"""DP-BREM: against a transcription of its equations, what one record changes, privacy, and the masked sum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from polyak.federated import masking, privacy
from polyak.federated.gradients import Batch
from polyak.federated.rules import DPBREM, DPBREMPlus, Message
from tests.federated.problems import apart, data, federation, network

H = {"lr": 0.2, "rounds": 8, "sample_rate": 0.4, "max_grad_norm": 0.7, "client_clip": 0.3, "momentum": 0.8}


def flat_gradients(model, x, y):
    found = []
    for i in range(len(y)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    return np.array(found).reshape(len(found), -1)


def test_as_written():
    """Three rounds with noise, in NumPy from the equations, on the records and numbers that the engine drew."""
    rule = DPBREM(**H, noise_multiplier=0.3)
    run, model = federation(rule), network()
    clients, names = data(), [n for n, _ in network().named_parameters()]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    size = len(theta)
    phi, held = np.zeros(size), {c: np.zeros(size) for c in clients}
    for t in range(3):
        drawn = torch.Generator()
        drawn.set_state(run.generator.get_state())
        rule.select(list(clients), drawn)
        s = 1 - 0.7 * t / 8
        torch.nn.utils.vector_to_parameters(torch.tensor(theta), model.parameters())
        for c, (x, y) in clients.items():
            rows = rule.records(len(y), 4, drawn)[0]
            torch.randint(2**62, (), generator=drawn)
            g = flat_gradients(model, x[rows], y[rows])
            g = g * np.minimum(1, 0.7 * s / (np.linalg.norm(g, axis=1, keepdims=True) + 1e-6)) if len(g) else g
            held[c] = 0.2 * g.sum(0).reshape(-1) / (0.4 * len(y)) + 0.8 * held[c]
        normal = rule.draws("server", run.state, len(clients), drawn)
        noise = torch.cat([normal[n].flatten() for n in names]).numpy() * 0.3 * 0.7 * s
        differences = [(m - phi) * min(1, 0.3 * s / np.linalg.norm(m - phi)) for m in held.values()]
        phi = phi + (np.sum(differences, 0) + noise) / len(clients)
        theta = theta - 0.2 * (1 - 0.9 * t / 8) * phi
        run.round()
        got = torch.cat([run.state.sets["arrays"][n].flatten() for n in names]).numpy()
        np.testing.assert_allclose(got, theta, rtol=0, atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_record_moves_the_clipped_sum_by_no_more_than_said(momentum):
    """A record taken away, the server's outputs replayed: the sum of differences changes by R / B at most."""
    rule = DPBREM(**{**H, "momentum": momentum, "client_clip": 0.05, "sample_rate": 1.0}, noise_multiplier=0.0)
    run = federation(rule)
    x, y = run.clients[0]
    x = x.clone()
    x[0] *= 50  # a record that pulls
    keeps, lacks = (rule.client_state(run.state.sets["arrays"]) for _ in range(2))
    moved = []
    for t in range(8):
        message = rule.broadcast(run.state)
        (_, keeps), (_, lacks) = (
            rule.client_update(run.gradient, state, message, [Batch(x[rows], y[rows])], len(y))
            for state, rows in ((keeps, slice(None)), (lacks, slice(1, None)))
        )
        center = torch.cat([p.flatten() for p in run.state.sets["momentum"].values()])
        bound = message.scalars["client_norm"]
        flat = [torch.cat([p.flatten() for p in s.sets["momentum"].values()])[None] for s in (keeps, lacks)]
        sums = [rule.differences(one, center, bound) for one in flat]
        moved.append(float((sums[0] - sums[1]).norm()))
        assert moved[-1] <= message.scalars["record_norm"] / len(y) * (1 + 1e-9) or t > 0
        assert moved[-1] <= H["max_grad_norm"] / len(y) * (1 + 1e-9)
        run.round()
    assert max(moved) > 0


def test_an_empty_batch_is_a_gradient_of_zero():
    for divisor in ("expected", "actual"):
        rule = DPBREM(**H, batch_divisor=divisor)
        run = federation(rule)
        x, y = run.clients[0]
        state = rule.client_state(run.state.sets["arrays"])
        ones = {n: torch.ones_like(t) for n, t in state.sets["momentum"].items()}
        state = type(state)({"momentum": ones})
        reply, _ = rule.client_update(run.gradient, state, rule.broadcast(run.state), [Batch(x[:0], y[:0], 1)], len(y))
        assert all(torch.equal(t, ones[n] * 0.8) for n, t in reply.sets["momentum"].items())


def test_batches_of_expected_or_actual_size():
    by_record = {"w": torch.ones(3, 2, dtype=torch.float64)}
    assert torch.allclose(DPBREM(**H).record_mean(by_record, None, 10)["w"], torch.tensor(3 / 4.0).double())
    actual = DPBREM(**H, batch_divisor="actual")
    assert torch.allclose(actual.record_mean(by_record, None, 10)["w"], torch.tensor(1.0).double())
    with pytest.raises(ValueError, match="batch_divisor"):
        actual.epsilon(100, 1e-5, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_record_that_is_not_finite_counts_as_zero(dtype, value):
    by_record = {"w": torch.ones(3, 2, 2, dtype=dtype), "b": torch.ones(3, dtype=dtype)}
    by_record["w"][1, 0, 1] = value
    found = DPBREM(**H).record_mean(by_record, 0.7, 10)
    for name, g in by_record.items():
        assert found[name].dtype == dtype
        want = torch.full(g.shape[1:], 2 * 0.7 / math.sqrt(5) / 4, dtype=dtype)
        torch.testing.assert_close(found[name], want)


def test_gradients_whose_squares_half_precision_does_not_hold_are_clipped():
    for value in (1e-4, 6e4):
        by_record = {"w": torch.full((1, 400), value, dtype=torch.float16)}
        found = DPBREM(**H).record_mean(by_record, 5e-4, 1)["w"].double() * 0.4
        assert float(found.norm()) == pytest.approx(5e-4, rel=0.02)


def test_a_client_that_was_not_selected_keeps_no_momentum_that_is_not_finite():
    run = federation(DPBREM(**H, noise_multiplier=0.0))
    run.round()
    kept, client_update = run.states[1], DPBREM.client_update

    class Spoiled(DPBREM):
        def client_update(self, gradient, state, *arguments):
            reply, new = client_update(self, gradient, state, *arguments)
            if state is kept:
                new = replace(new, sets={"momentum": {n: t * math.inf for n, t in new.sets["momentum"].items()}})
            return reply, new

    run.rule = Spoiled(**H, noise_multiplier=0.0)
    others = {c: state for c, state in run.states.items() if c != 1}
    run.round(selected=[0, 2])
    assert run.states[1] is kept
    assert all(run.states[c] is not state for c, state in others.items())


def test_a_client_that_is_not_finite_counts_as_a_difference_of_zero():
    rule = DPBREM(**H, noise_multiplier=0.0)
    run, center = federation(rule), federation(rule)

    def lie(c, m):
        return Message(m.round, {**m.sets, "momentum": {n: t * math.nan for n, t in m.sets["momentum"].items()}})

    def stay(c, m):
        return Message(m.round, {**m.sets, "momentum": center.state.sets["momentum"]})

    found = run.round(intercept=lambda c, m: lie(c, m) if c == 1 else m)
    center.round(intercept=lambda c, m: stay(c, m) if c == 1 else m)
    assert found.dropped.keys() == {1}
    assert apart(run, center) < 1e-15


def test_all_clients_keep_their_momentum_up_to_date_only_where_there_is_one():
    for momentum, everyone in ((0.9, True), (0.0, False)):
        run = federation(DPBREM(**{**H, "momentum": momentum}, client_rate=0.3))
        found = run.round()
        assert len(found.selected) < len(run.clients)
        assert (set(run.states) == set(run.clients)) is everyone


def test_noise_comes_from_draws_and_nowhere_else():
    rule = DPBREM(**H)
    run = federation(rule)
    replies = []
    run.round(intercept=lambda c, m: replies.append((c, m)) or m)
    fresh = rule.server_state(federation(rule).state.sets["arrays"], 5)
    with pytest.raises(ValueError, match="draws"):
        rule.aggregate(fresh, replies)


@pytest.mark.parametrize(("placement", "share"), [("ldp", 1.0), ("ddp", 0.3)])
def test_noise_at_clients(placement, share):
    rule = DPBREM(**{**H, "momentum": 0.0}, noise_multiplier=0.5, placement=placement)
    run = federation(rule)
    weights = run.state.sets["arrays"]
    ones = {n: torch.ones_like(w) for n, w in weights.items()}
    x, y = run.clients[0]
    empty = [Batch(x[:0], y[:0], 1)]
    message = rule.broadcast(run.state)
    reply, _ = rule.client_update(run.gradient, rule.client_state(weights), message, empty, len(y), ones)
    assert all(torch.allclose(t, ones[n] * share * 0.5 * 0.7) for n, t in reply.sets["momentum"].items())
    assert rule.draws("server", run.state, 5, run.generator) is None


def test_privacy():
    silent, rule = DPBREM(**H, noise_multiplier=0.0), DPBREM(**H, noise_multiplier=0.5)
    assert silent.epsilon(100, 1e-5, 8) == math.inf
    assert rule.noise_to_record(50) == pytest.approx(0.5 * 0.4 * 50)
    more = [rule.epsilon(n, 1e-5, 8) for n in (20, 50, 200, 1000)]
    assert more == sorted(more, reverse=True)
    assert rule.epsilon(50, 1e-5, 8, accounting="per_round") < rule.epsilon(50, 1e-5, 8)
    at_clients = DPBREM(**H, noise_multiplier=0.5, placement="ldp")
    assert at_clients.epsilon(50, 1e-5, 8) == privacy.epsilon_of(privacy.rdp_gaussian(10.0, 1.0, 8), 1e-5).epsilon
    plain = DPBREM(**{**H, "momentum": 0.0}, noise_multiplier=0.5, client_rate=0.5)
    rates = privacy.rdp_gaussian(plain.noise_to_record(50), 0.4, 8)
    assert plain.epsilon(50, 1e-5, 8) == privacy.epsilon_of(rates, 1e-5).epsilon
    with pytest.raises(ValueError, match="accounting"):
        rule.epsilon(50, 1e-5, 8, accounting="guess")
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            rule.epsilon(50, delta, 8)


def test_behind_the_last_round_norms_and_rate_stay_and_what_is_run_counts():
    rule = DPBREM(**H, noise_multiplier=0.5)
    run = federation(rule)
    run.run(10)
    last = {"lr": 0.2 * 0.1, "record_norm": 0.7 * 0.3, "client_norm": 0.3 * 0.3}
    for t in (8, 9, 10, 1000):
        sent = rule.broadcast(replace(run.state, counters={**run.state.counters, "round": t})).scalars
        assert dict(sent) == pytest.approx(last, rel=1e-14)
    spent = [rule.rdp(50, t) for t in (0, 8, 10, 20)]
    assert spent[0] == [0.0] * len(spent[0])
    assert all(a < b < c for a, b, c in zip(*spent[1:], strict=True))
    assert rule.rdp(50, run.state) == spent[2]
    for bad in (-1, 2.5, None):
        with pytest.raises((TypeError, ValueError), match="rounds"):
            rule.rdp(50, bad)


class Pulling:
    """Gradients of records all of which are zero, or of which the first is far above any bound."""

    def __init__(self, size):
        self.size = size

    def per_record(self, weights, buffers, batch):
        found = torch.zeros(batch, 4, dtype=torch.float64)
        found[0] = self.size
        return {"w": found}


@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.01])
def test_the_worst_case_is_what_a_record_in_every_round_changes(ratio):
    """Two clients that differ by a record, with noise that falls as its bound does: their distances, as Gaussians."""
    h = {"rounds": 60, "momentum": 0.9, "final_norm_ratio": ratio, "max_grad_norm": 2.0, "client_clip": None}
    rule, n, order = DPBREM(**h, sample_rate=1.0, noise_multiplier=0.8), 10, [4.0]
    state = rule.server_state({"w": torch.zeros(4, dtype=torch.float64)}, 1)
    held, spent = [rule.client_state(state.sets["arrays"]) for _ in range(2)], 0.0
    for t in range(60):
        message = rule.broadcast(replace(state, counters={**state.counters, "round": t}))
        for i, size in enumerate((0.0, 1e6)):
            _, held[i] = rule.client_update(Pulling(size), held[i], message, [n], n)
        moved = float((held[1].sets["momentum"]["w"] - held[0].sets["momentum"]["w"]).norm())
        spent += order[0] * (moved / (0.8 * message.scalars["record_norm"])) ** 2 / 2
    assert rule.rdp(n, 60, "worst_case", order)[0] == pytest.approx(spent, rel=1e-9)
    assert rule.rdp(n, 60, "per_round", order)[0] >= spent


@given(clients=st.integers(2, 7), gone=st.integers(0, 2), size=st.integers(1, 20), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_an_opened_sum_is_the_plain_one_whoever_vanishes(clients, gone, size, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(clients, size, generator=generator, dtype=torch.float64) * 10
    seeds = torch.randint(2**62, (clients, clients), generator=generator)
    there = list(range(clients))[min(gone, clients - 1) :]
    sent = {i: masking.masked(masking.encoded(vectors[i], clients), i, seeds) for i in there}
    assert float((masking.opened(sent, seeds) - vectors[there].sum(0)).abs().max()) <= clients * 2**-16
    if len(there) > 1:
        alone = masking.decoded(sent[there[0]])
        assert not torch.allclose(alone, vectors[there[0]], atol=1.0)


def test_values_outside_the_fixed_point_are_refused():
    with pytest.raises(ValueError, match="vector must be below"):
        masking.encoded(torch.tensor([1e5]), 1)
    with pytest.raises(ValueError, match="vector must be below"):
        masking.encoded(torch.tensor([math.nan]), 1)
    run = federation(DPBREMPlus(**{**H, "client_clip": 1e9, "max_grad_norm": 1e9}, noise_multiplier=1.0))
    with pytest.raises(ValueError, match="fixed point"):
        run.round()


def test_masked_and_plain_are_the_same_without_noise():
    plain, hidden = (federation(kind(**H, noise_multiplier=0.0)) for kind in (DPBREM, DPBREMPlus))
    for t in range(6):
        hidden.generator.set_state(plain.generator.get_state())
        plain.round(silent=[2] if t == 3 else [])
        hidden.round(silent=[2] if t == 3 else [])
    assert apart(plain, hidden, "momentum") <= 6 * 2**-16


def test_shares_of_noise_reach_what_is_asked_for():
    """In a run whose clients have no difference the sum is the noise: its variance is n / h of DP-BREM's."""
    rule = DPBREMPlus(**H, noise_multiplier=50.0, num_honest=3)
    message = rule.broadcast(rule.server_state({"w": torch.zeros(2)}, 5))
    assert message.scalars["noise_share"] == pytest.approx(50.0 * 0.7 / math.sqrt(3))


def test_silent_clients_take_no_privacy_along():
    """What is left of the noise on the sum has at least the asked for variance, or the round is lost."""
    model = nn.Linear(40, 25).double()
    clients = {i: (torch.zeros(3, 40).double(), torch.zeros(3).long()) for i in range(6)}
    for honest in (1, 3):
        rule = DPBREMPlus(**{**H, "momentum": 0.0, "max_grad_norm": 1.0}, noise_multiplier=2.0, num_honest=honest)
        for silent in ([], [0, 1, 2]):
            run = federation(rule, clients, model)
            run.round(silent=silent)
            left = 6 - len(silent)
            noise = run.state.sets["momentum"]["weight"] * left
            assert float(noise.std()) == pytest.approx(2.0 * math.sqrt(left / honest), rel=0.05)
    run = federation(rule, clients, model)
    before = run.state
    with pytest.raises(ValueError, match="num_honest must be at most the number of replies that can be used, 2, got 3"):
        run.round(silent=[0, 1, 2, 3])
    assert run.state is before
    quiet = federation(DPBREMPlus(**H, noise_multiplier=0.0, num_honest=3), clients, model)
    assert quiet.round(silent=[0, 1, 2, 3]).accepted == [4, 5]


def test_a_difference_above_the_bound_is_dropped_and_named():
    run = federation(DPBREMPlus(**H))

    def lie(c, m):
        far = {n: t + 1.0 for n, t in m.sets["difference"].items()}
        return Message(m.round, {**m.sets, "difference": far}, m.scalars) if c == 4 else m

    found = run.round(intercept=lie)
    assert found.dropped.keys() == {4}
    assert "above" in found.dropped[4]
