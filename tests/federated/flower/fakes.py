"""Flower without a network: a Grid in memory, that hands messages to a ClientApp as bytes would, and nodes."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from polyak.federated.flower import Client, Strategy
from tests.federated.problems import data, network

SEED = 7
Intercept = Callable[[int, int, Message], Message | list[Message] | None]


def copied(content: RecordDict) -> RecordDict:
    """The records with arrays of their own, as behind a network."""
    kept: dict[str, Any] = {}
    for name, record in content.items():
        kept[name] = ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else type(record)(dict(record))
    return RecordDict(kept)


class FakeGrid(Grid):
    """Nodes 0 ... n - 1 with a ClientApp, whose contexts live as long as the grid.

    Args:
        app: of all nodes.
        nodes: how many.
        intercept: what becomes of a reply, ``f(node, round, reply)``: another, several, or None.
        fails: for a round its nodes that die in it.
    """

    def __init__(self, app: ClientApp, nodes: int = 5, intercept: Intercept | None = None, fails: Any = None) -> None:
        # What Flower's own processes say of themselves, and without which no message can be made.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
        self.app, self.ids, self.fails = app, list(range(1, nodes + 1)), fails or {}
        self.intercept = intercept or (lambda node, round, reply: reply)
        self.contexts = {
            i: Context(run_id=1, node_id=i, node_config={"partition-id": i - 1}, state=RecordDict(), run_config={})
            for i in self.ids
        }
        self.sent: list[Message] = []

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(reversed(self.ids))  # in no order that one could rely on

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies: list[Message] = []
        for sent in list(messages):
            node, round = sent.metadata.dst_node_id, int(sent.content.config_records["config"]["server-round"])
            sent.content = copied(sent.content)
            self.sent.append(sent)
            reply = self._reply(sent, node, round)
            came = self.intercept(node, round, reply)
            replies += came if isinstance(came, list) else [came] if came is not None else []
        return replies[::-1]

    def _reply(self, sent: Message, node: int, round: int) -> Message:
        if node in self.fails.get(round, ()):
            return Message(Error(code=0, reason="the node died"), reply_to=sent)
        try:
            reply = self.app(sent, self.contexts[node])
        except Exception as error:
            return Message(Error(code=0, reason=str(error)), reply_to=sent)
        reply.content = copied(reply.content)
        return reply


def loaders(clients: int = 5, batch_size: int = 4) -> Callable[[Context], DataLoader]:
    made = {i: DataLoader(TensorDataset(*pair), batch_size=batch_size) for i, pair in data(clients).items()}
    return lambda context: made[int(context.node_config["partition-id"])]


class Recording(Client):
    """Remembers the batches that it drew, by node and round."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.drawn: dict[tuple[int, int], list[Any]] = {}
        self.steps: dict[tuple[int, int], int] = {}

    def train(self, message: Message, context: Context, *, steps: int | None = None) -> Message:
        key = int(context.node_config["partition-id"]), int(message.content.config_records["polyak"]["round"])
        self.at = key
        return super().train(message, context, steps=self.steps.get(key, steps))

    def batches(self, loader: DataLoader, generator: torch.Generator, steps: int | None = None) -> list[Any]:
        self.drawn[self.at] = super().batches(loader, generator, steps)
        return self.drawn[self.at]


def app_of(client: Client) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return client.train(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"loss": float(context.node_id), "num-examples": 10})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def client_of(rule: Any, model: Any = None, **named: Any) -> Recording:
    return Recording(rule, model or network(), F.cross_entropy, loaders(), **{"seed": SEED, **named})


def strategy_of(rule: Any, model: Any = None, **named: Any) -> Strategy:
    return Strategy(rule, model or network(), **{"fraction_evaluate": 0.0, "seed": 0, **named})


def arrays_of(model: Any = None) -> ArrayRecord:
    return ArrayRecord(deepcopy((model or network()).state_dict()))


def largest(record: ArrayRecord, tensors: Any) -> float:
    """The largest difference of a record's entries from tensors of the same names."""
    got = record.to_torch_state_dict()
    return max(float((got[n].double() - t.double()).abs().max()) for n, t in tensors.items())


def changed(reply: Message, **records: Any) -> Message:
    """A reply with other records; None takes one away."""
    content = copied(reply.content)
    for name, record in records.items():
        if record is None:
            del content[name]
        else:
            content[name] = record
    reply.content = content
    return reply


__all__ = ["ConfigRecord", "FakeGrid", "app_of", "arrays_of", "changed", "client_of", "largest", "strategy_of"]
