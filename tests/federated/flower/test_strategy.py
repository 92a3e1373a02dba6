"""Flower's adapter gives the model of the engine in one process, whatever happens to nodes and servers."""

import pytest
import torch

pytest.importorskip("flwr")

from polyak.federated import rules
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, client_of, largest, strategy_of
from tests.federated.problems import federation, network

ROUNDS = 4
PRIVATE = rules.DPBREM(client_rate=0.6, sample_rate=0.5, noise_multiplier=0.5)
NAMES = [n for n in rules.names() if n not in ("dp_brem", "dp_brem_plus")]


def in_process(rule, strategy, client, model=None):
    """The same rounds, with the same selections and batches, without Flower."""
    run = federation(rule, model=model)
    for k, found in enumerate(strategy.rounds):
        nodes = [n - 1 for n in found.selected]
        run.round(nodes, batches={n: client.drawn[n, k] for n in nodes})
    return run


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_rule_learns_as_in_one_process(name, norm):
    rule = rules.get(name)(participation=0.6, local_steps=3)
    model = network(norm=norm)
    client, strategy = client_of(rule, model), strategy_of(rule, model)
    result = strategy.start(FakeGrid(app_of(client)), arrays_of(model), num_rounds=ROUNDS)
    run = in_process(rule, strategy, client, model)
    assert len(strategy.rounds) == ROUNDS
    assert all(len(one.accepted) == 3 for one in strategy.rounds)
    assert largest(result.arrays, {**run.state.sets["arrays"], **run.state.sets["buffers"]}) == 0


def test_a_private_rule_without_noise_learns_as_in_one_process():
    rule = rules.DPBREM(client_rate=0.6, sample_rate=0.5, noise_multiplier=0.0)
    client, strategy = client_of(rule), strategy_of(rule, seed=4)
    result = strategy.start(FakeGrid(app_of(client)), arrays_of(), num_rounds=ROUNDS)
    run = federation(rule)
    for k, found in enumerate(strategy.rounds):
        run.round([n - 1 for n in found.selected], batches={n: client.drawn[n, k] for n in run.clients})
    assert any(len(found.selected) < 5 for found in strategy.rounds), "all have worked, but not all have sent"
    assert largest(result.arrays, run.state.sets["arrays"]) == 0


def test_nodes_that_were_not_selected_send_nothing_but_their_numbers():
    sent = {}
    client, strategy = client_of(PRIVATE), strategy_of(PRIVATE, seed=4)
    grid = FakeGrid(app_of(client), intercept=lambda n, r, reply: sent.setdefault((n, r), reply))
    strategy.start(grid, arrays_of(), num_rounds=ROUNDS)
    for (node, round), reply in sent.items():
        assert bool(reply.content.array_records) == (node in strategy.rounds[round - 1].selected)


@pytest.mark.parametrize("placement", ["cdp", "ddp"])
def test_noise_is_the_same_for_a_message_and_another_for_another(placement):
    rule = rules.DPBREM(client_rate=1.0, sample_rate=1.0, noise_multiplier=0.5, placement=placement)
    updates = []
    for change in (0.0, 0.0, 1e-30):
        model = network()
        with torch.no_grad():
            model[0].bias[0] = change
        client, strategy = client_of(rule, model), strategy_of(rule, model)
        grid = FakeGrid(app_of(client), intercept=lambda n, r, reply: updates.append(reply) if n == 1 else reply)
        strategy.start(grid, arrays_of(model), num_rounds=1)
    first, again, other = (one.content["momentum"].to_torch_state_dict()["0.weight"] for one in updates)
    assert torch.equal(first, again)
    assert torch.allclose(first, other, rtol=0, atol=1e-9) == (placement == "cdp"), "noise that cancels is none"


def test_seeds_decide_what_is_selected_and_drawn():
    rule = rules.FedAvg(local_steps=2, participation=0.4)

    def selected(seed):
        strategy = strategy_of(rule, seed=seed)
        strategy.start(FakeGrid(app_of(client_of(rule))), arrays_of(), num_rounds=6)
        return [one.selected for one in strategy.rounds]

    assert selected(1) == selected(1)
    assert selected(1) != selected(2)
    assert selected(None) != selected(None)


def test_fractions_are_taken_as_by_flowers_fedavg():
    rule = rules.FedAvg(local_steps=1)
    for fraction, least, count in ((0.5, 2, 2), (0.9, 2, 4), (0.1, 3, 3), (1.0, 1, 5)):
        strategy = strategy_of(rule, fraction_train=fraction, min_train_nodes=least)
        grid = FakeGrid(app_of(client_of(rule)))
        strategy.start(grid, arrays_of(), num_rounds=1)
        assert len(strategy.rounds[0].selected) == count
    strategy = strategy_of(rule, fraction_train=0.0, fraction_evaluate=0.5)
    result = strategy.start(FakeGrid(app_of(client_of(rule))), arrays_of(), num_rounds=1)
    assert strategy.rounds == []
    assert 1 <= result.evaluate_metrics_clientapp[1]["loss"] <= 5


def test_clients_count_for_rules_that_average_over_all():
    rule = rules.SCAFFOLD(local_steps=1)
    client, grids = client_of(rule), []
    for number in (None, 50):
        strategy = strategy_of(rule, num_clients=number)
        grids.append(FakeGrid(app_of(client)))
        strategy.start(grids[-1], arrays_of(), num_rounds=2)
    one, other = (g.sent[-1].content["control"].to_torch_state_dict() for g in grids)
    assert all(torch.allclose(t, 10 * other[n], rtol=1e-12) for n, t in one.items())


def test_keys_can_have_other_names():
    rule = rules.FedAvgM(local_steps=2)
    names = {"arrayrecord_key": "model", "weighted_by_key": "records"}
    strategies = [strategy_of(rule, **some) for some in ({}, names)]
    one, other = (s.start(FakeGrid(app_of(client_of(rule))), arrays_of(), num_rounds=2) for s in strategies)
    assert largest(one.arrays, other.arrays.to_torch_state_dict()) == 0


@pytest.mark.parametrize(
    ("rule", "named", "words"),
    [
        (rules.DPBREMPlus(), {}, "masks are simulated"),
        (rules.SCAFFOLD(warm_start_batches=2), {}, "warm_start_batches=0"),
        (rules.DPBREM(), {"fraction_train": 0.5}, "draws by its own rate"),
        (rules.FedAvg(), {"fraction_train": 1.5}, "fraction_train must be from 0 to 1, got 1.5"),
        (rules.FedAvg(), {"fraction_evaluate": -1}, "fraction_evaluate must be from 0 to 1, got -1"),
        (rules.FedAvgM(), {"arrayrecord_key": "momentum"}, "arrayrecord_key must be none of"),
        (rules.FedAvg(), {"configrecord_key": "polyak"}, "configrecord_key must be none of"),
        (rules.FedAvg(), {"model": torch.nn.Tanh()}, "weights that require a gradient"),
        (rules.DPBREM(), {"model": network(norm=True)}, "BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused(rule, named, words):
    with pytest.raises(ValueError, match=words):
        strategy_of(rule, **named)


def test_initial_arrays_of_another_model_are_refused():
    with pytest.raises(ValueError, match="initial_arrays must be the model's state_dict"):
        strategy_of(rules.FedAvg()).start(FakeGrid(None), arrays_of(network(norm=True)), num_rounds=1)
