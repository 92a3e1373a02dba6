"""ClientApps as Flower's PyTorch quickstart has them, which know nothing of polyak, under strategies of polyak."""

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM
from torch import nn

from polyak.federated import rules
from tests.federated.flower.fakes import FakeGrid, app_of, arrays_of, client_of, largest, loaders, strategy_of
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
    grid = FakeGrid(quickstart(lambda: model or network()))
    return strategy.start(grid, arrays_of(model), num_rounds=rounds, train_config=ConfigRecord({"lr": 0.05}))


def test_fedavg_by_examples_is_flowers_own():
    ours = run(strategy_of(rules.FedAvg(weighting="examples"), fraction_evaluate=1.0))
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
    rule = rules.get(name)(local_lr=0.05, participation=1.0)
    strategy = strategy_of(rule, fraction_evaluate=1.0)
    result = run(strategy)
    assert [one.plain for one in strategy.rounds] == [[1, 2, 3, 4, 5]] * 3
    before, after = (result.evaluate_metrics_clientapp[r]["eval_loss"] for r in (1, 3))
    assert after < before


@pytest.mark.parametrize(("name", "count"), [("fedavg_m", 1), ("server_momentum", 0), ("fedavg", 0)])
def test_it_is_said_once_where_plain_nodes_leave_something_out(name, count, caplog):
    run(strategy_of(rules.get(name)()))
    assert sum("mixes into local steps has no effect" in one.message for one in caplog.records) == count


@pytest.mark.parametrize("name", WITH_STATE)
def test_others_say_what_they_need(name):
    strategy = strategy_of(rules.get(name)())
    result = run(strategy, rounds=1)
    assert len(result.arrays) == 0
    assert all("needs nodes with polyak.federated.flower.Client" in why for why in strategy.rounds[0].dropped.values())


class Tied(nn.Module):
    """Buffers, a frozen weight, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.middle, self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again.weight = self.middle.weight
        self.first.bias.requires_grad_(False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.middle(self.norm(self.first(x))).tanh()))


@pytest.mark.parametrize("plain", [False, True])
def test_buffers_are_averaged_and_frozen_and_tied_weights_stay_so(plain):
    model, rule = Tied(), rules.FedAvg(local_steps=3)
    strategy = strategy_of(rule, model)
    app = quickstart(Tied) if plain else app_of(client_of(rule, model))
    config = ConfigRecord({"lr": 0.05})
    result = strategy.start(FakeGrid(app), arrays_of(model), num_rounds=2, train_config=config)
    got, before = result.arrays.to_torch_state_dict(), model.state_dict()
    assert list(got) == list(before)
    same = {n for n, t in before.items() if torch.equal(got[n], t)}
    assert same == {"first.bias", "norm.num_batches_tracked"}
    assert torch.equal(got["middle.weight"], got["again.weight"])
