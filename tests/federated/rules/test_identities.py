"""What rules are of each other, exactly."""

import pytest
import torch
from torch.nn import functional as F

from polyak.federated import aggregators, rules
from polyak.federated.rules.fedavg_m import LocalMomentum
from polyak.federated.rules.tensors import added, mixed
from tests.federated.problems import apart, data, federation, network

SAME = {
    "local_lr": 0.1,
    "local_steps": 3,
    "server_lr": None,
    "max_norm": None,
    "weight_decay": 0.0,
    "participation": 0.6,
}


def runs(*kinds: rules.FederatedRule, rounds: int = 4, **k):
    found = [federation(rule, **k) for rule in kinds]
    for run in found:
        run.run(rounds)
    return found


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (rules.FedAvgM, rules.FedAvg), (rules.FedAvgMVR, rules.FedAvg), (rules.SCAFFOLDM, rules.SCAFFOLD),
        (rules.SCAFFOLDMVR, rules.SCAFFOLD), (rules.ServerMomentum, rules.FedAvg), (rules.FedCM, rules.FedAvg),
    ],
)  # fmt: skip
def test_without_momentum_it_is_the_plain_rule(kind, plain):
    fresh = {"beta": 1.0} if issubclass(kind, LocalMomentum) else {"momentum": 0.0}
    assert apart(*runs(kind(**SAME, **fresh), plain(**SAME)), "arrays") < 1e-14


def test_clients_with_the_same_data_and_full_batches_need_no_control():
    k = {"clients": data(alike=True), "batch_size": 100}
    assert apart(*runs(rules.SCAFFOLDM(local_steps=3), rules.FedAvgM(local_steps=3), **k), "arrays") < 1e-14


def test_server_step_of_eta_K_is_the_mean_of_models():
    rule = rules.FedAvg(local_steps=3, local_lr=0.05)
    run = federation(rule)
    sent, start = [], run.state.sets["arrays"]
    run.round(intercept=lambda c, m: sent.append(added(start, m.sets["update"], -0.15)) or m)
    for name, weights in run.state.sets["arrays"].items():
        torch.testing.assert_close(weights, torch.stack([one[name] for one in sent]).mean(0), rtol=0, atol=1e-15)


def test_one_client_and_one_step_is_sgd_with_an_average():
    rule = rules.FedAvgM(local_lr=0.1, local_steps=1, momentum=0.7)
    run = federation(rule, {0: data()[0]}, batch_size=100)
    model = network()
    average = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for _ in range(5):
        run.round()
        model.zero_grad()
        F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
        average = mixed({n: p.grad for n, p in model.named_parameters()}, average, 0.7)
        with torch.no_grad():
            for n, p in model.named_parameters():
                p -= 0.1 * average[n]
    for n, p in model.named_parameters():
        torch.testing.assert_close(run.state.sets["arrays"][n], p.detach(), rtol=0, atol=1e-14)


def test_one_client_and_one_step_with_variance_reduction_is_storm():
    lr, momentum = 0.1, 0.7
    run = federation(rules.FedAvgMVR(local_lr=lr, server_lr=lr, local_steps=1, momentum=momentum), {0: data()[0]})
    weights = before = run.state.sets["arrays"]
    direction = None
    for _ in range(5):
        (batch,) = run._drawn(0)
        gradient, old = (run.gradient(w, {}, batch)[0] for w in (weights, before))
        direction = gradient if direction is None else added(gradient, added(direction, old, -1.0), momentum)
        weights, before = added(weights, direction, -lr), weights
        run.round(batches={0: [batch]})
        assert max(float((run.state.sets["arrays"][n] - weights[n]).abs().max()) for n in weights) < 1e-14


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("kind", [rules.SCAFFOLD, rules.SCAFFOLDM, rules.SCAFFOLDMVR])
def test_the_servers_control_is_the_mean_of_the_clients(kind, warm):
    run = federation(kind(participation=0.4, local_steps=2, warm_start_batches=warm))
    for _ in range(5):
        run.round(silent=[1])
        zeros = run.rule.client_state(run.state.sets["arrays"])
        held = [run.states.get(c, zeros).sets["control"] for c in run.clients]
        for n, control in run.state.sets["control"].items():
            torch.testing.assert_close(torch.stack([one[n] for one in held]).mean(0), control, rtol=0, atol=1e-14)


def test_warm_start_holds_gradients_at_the_first_weights():
    run = federation(rules.SCAFFOLDM(warm_start_batches=1, local_lr=1e-9, local_steps=1), batch_size=100)
    run.round()
    for c, (x, y) in run.clients.items():
        model = network()
        F.cross_entropy(model(x), y).backward()
        held = run.states[c].sets["control"]
        for n, p in model.named_parameters():
            torch.testing.assert_close(held[n], p.grad, rtol=0, atol=1e-7)


def test_fedswa_with_constant_rates_and_no_step_beyond_is_fedavg():
    h = {**SAME, "server_lr": 1.0, "lr_floor": 1.0}
    assert apart(*runs(rules.FedSWA(**h), rules.FedAvg(**SAME)), "arrays") < 1e-14


def test_presets_of_2026_are_what_they_say():
    h = {**SAME, "server_lr": 1.0, "lr_floor": 1.0, "momentum": 0.6}
    assert (
        apart(*runs(rules.FedMoSWA2026(**{k: v for k, v in SAME.items() if k != "server_lr"}), rules.FedMoSWA(**h)))
        == 0
    )
    last = rules.FedSWA2026(local_steps=4, local_lr=0.2)._lrs(0.2, 4)
    assert last == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_exact_sum_of_rates():
    exact, rough = (rules.FedMoSWA(exact_lr_sum=exact) for exact in (True, False))
    assert exact._lr_sum(0.3, 5) == pytest.approx(0.3 * (5 * 1.1 + 0.9) / 2)
    assert rough._lr_sum(0.3, 5) == pytest.approx(5 * 0.3 * 1.1 / 2)


def test_option_one_is_the_gradient_at_the_servers_weights():
    run = federation(rules.FedMoSWA(option="I", local_steps=1, participation=1.0), batch_size=100)
    run.round()
    x, y = run.clients[0]
    model = network()
    F.cross_entropy(model(x), y).backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(run.states[0].sets["control"][n], p.grad, rtol=0, atol=1e-14)


def test_a_rate_of_zero_leaves_memories_alone():
    rule = rules.FedMoSWA(schedule="cosine", rounds=2, local_steps=2, participation=1.0)
    run = federation(rule)
    run.run(2)
    before = {c: s.sets["control"] for c, s in run.states.items()}
    run.round()
    assert all(torch.equal(run.states[c].sets["control"][n], t) for c, held in before.items() for n, t in held.items())


def test_stragglers_count_by_their_own_steps_or_not():
    steps = {0: 1}
    for mode, ratio in (("normalize", 1.0), ("average", 0.25)):
        rule = rules.FedAvg(local_steps=4, unequal_steps=mode, weight_decay=0.0)
        run = federation(rule, {0: data()[0]}, batch_size=100)
        run.round(steps=steps)
        x, y = data()[0]
        model = network()
        F.cross_entropy(model(x), y).backward()
        for n, p in model.named_parameters():
            want = p.detach() - 0.4 * ratio * p.grad
            torch.testing.assert_close(run.state.sets["arrays"][n], want, rtol=0, atol=1e-14)


def test_weights_by_examples():
    rule = rules.FedAvg(local_steps=1, weighting="examples", local_lr=0.1)
    run = federation(rule, batch_size=1000)
    run.round()
    model = network()
    x, y = (torch.cat([one[i] for one in data().values()]) for i in (0, 1))
    F.cross_entropy(model(x), y).backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(run.state.sets["arrays"][n], p.detach() - 0.1 * p.grad, rtol=0, atol=1e-14)


def test_a_robust_aggregator_goes_with_any_rule():
    for kind in (rules.FedAvgM, rules.SCAFFOLDM, rules.FedMoSWA):
        run = federation(kind(participation=1.0, local_steps=2, aggregator=aggregators.TrimmedMean(1)))

        def lie(c, m):
            bad = {n: t + 1e6 for n, t in m.sets["update"].items()}
            return m if c else rules.Message(m.round, {**m.sets, "update": bad}, m.scalars)

        run.round(intercept=lie)
        assert max(float(t.abs().max()) for t in run.state.sets["arrays"].values()) < 100
