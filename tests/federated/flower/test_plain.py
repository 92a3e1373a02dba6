"""ClientApps as Flower's PyTorch quickstart has them, which know nothing of polyak, under strategies of polyak."""

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM
from torch import nn

from polyak.federated import rules
from tests.federated.flower.fakes import FakeGrid, arrays_of, largest, loaders, strategy_of
from tests.federated.problems import network

STATELESS = [n for n in rules.names() if not n.startswith("dp_") and not rules.get(n).client_sets]
WITH_STATE = [n for n in rules.names() if n != "dp_brem_plus" and rules.get(n).client_sets]


def quickstart(model_of=network) -> ClientApp:
    """The quickstart's: a model of the message's arrays, an epoch of SGD, weights and number of examples back."""
    app, data = ClientApp(), loaders()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = model_of()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=message.content["config"]["lr"], momentum=0.9)
        loader = data(context)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
        metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(loader.dataset)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = model_of()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        (inputs, targets) = data(context).dataset.tensors
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(inputs), targets)
        metrics = MetricRecord({"eval_loss": loss.item(), "num-examples": len(targets)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def run(strategy, model=None, rounds=3):
    from flwr.app import ConfigRecord

    grid = FakeGrid(quickstart(lambda: model or network()))
    return strategy.start(grid, arrays_of(model), num_rounds=rounds, train_config=ConfigRecord({"lr": 0.05}))


@pytest.mark.parametrize("norm", [False, True])
def test_fedavg_by_examples_is_flowers_own(norm):
    ours = run(strategy_of(rules.FedAvg(weighting="examples"), network(norm=norm), fraction_evaluate=1.0))
    if norm:
        return
    theirs = run(FedAvg())
    assert largest(ours.arrays, theirs.arrays.to_torch_state_dict()) < 1e-14
    for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        for round, metrics in getattr(theirs, name).items():
            assert dict(getattr(ours, name)[round]) == pytest.approx(dict(metrics), rel=1e-12)


def test_server_momentum_is_flowers_fedavgm():
    ours = run(strategy_of(rules.ServerMomentum(weighting="examples", momentum=0.6)))
    theirs = run(FedAvgM(server_learning_rate=1.0, server_momentum=0.6))
    assert largest(ours.arrays, theirs.arrays.to_torch_state_dict()) < 1e-13


@pytest.mark.parametrize("name", STATELESS)
def test_rules_without_client_state_take_plain_replies(name):
    strategy = strategy_of(rules.get(name)(), network(), fraction_evaluate=1.0)
    result = run(strategy)
    assert [one.plain for one in strategy.rounds] == [[1, 2, 3, 4, 5]] * 3
    before, after = (result.evaluate_metrics_clientapp[r]["eval_loss"] for r in (1, 3))
    assert after < before


@pytest.mark.parametrize("name", WITH_STATE)
def test_others_say_what_they_need(name):
    strategy = strategy_of(rules.get(name)())
    result = run(strategy, rounds=1)
    assert len(result.arrays) == 0
    assert all("needs nodes with polyak.federated.flower.Client" in why for why in strategy.rounds[0].dropped.values())


def test_buffers_are_averaged_frozen_and_tied_weights_stay_so():
    model = network(norm=True)
    model[0].requires_grad_(False)
    model.add_module("tied", nn.Linear(6, 3).double())
    model[-1].weight, model[-1].bias = model[-2].weight, nn.Parameter(torch.zeros(3).double())
    first = {n: t.clone() for n, t in model.state_dict().items()}
    strategy = strategy_of(rules.FedAvg(), model)

    class Same(nn.Module):
        pass

    from tests.federated.flower.fakes import app_of, client_of

    net = nn.Sequential(*list(model)[:-1])
    client, strategy = client_of(rules.FedAvg(local_steps=2), net), strategy_of(rules.FedAvg(local_steps=2), net)
    got = strategy.start(FakeGrid(app_of(client)), arrays_of(net), num_rounds=2).arrays.to_torch_state_dict()
    assert torch.equal(got["0.weight"], first["0.weight"])
    assert not torch.equal(got["1.running_mean"], first["1.running_mean"])
