"""Flower's adapter gives the model of the engine in one process, whatever happens to nodes and servers."""

import pytest

pytest.importorskip("flwr")

from polyak.federated import rules
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, client_of, largest, strategy_of
from tests.federated.problems import federation, network

ROUNDS = 4
NAMES = [n for n in rules.names() if n not in ("dp_brem", "dp_brem_plus")]


def in_process(rule, strategy, client, model=None, steps=None):
    """The same rounds, with the same selections and batches, without Flower."""
    run = federation(rule, model=model)
    for k, found in enumerate(strategy.rounds):
        nodes = [n - 1 for n in found.selected]
        everyone = list(run.clients) if rule.everyone else nodes
        silent = [n - 1 for n in found.selected if n not in found.accepted]
        batches = {n: client.drawn.get((n, k), client.drawn[max(client.drawn)]) for n in everyone}
        run.round(nodes, silent=silent, batches=batches)
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
