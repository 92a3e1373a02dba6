"""The rules whose clients take several steps of SGD: the local loop with its three places, and the server's step.

A rule says what it does at each place: to the gradient before memories are mixed in, in the mix, and after the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from polyak.declare import COUNT, POSITIVE, SHARE, Argument, Lr, Range, WeightDecay
from polyak.federated.aggregators import Aggregator, Mean
from polyak.federated.rules.base import FederatedRule, Gradient, stacked
from polyak.federated.rules.messages import ClientId, Message, Reply, Sets, State
from polyak.federated.rules.tensors import Tensors, added, clipped, mean, rows, scaled, unrowed
from polyak.memory._dtype import at_least_float32

LocalLr = Annotated[Lr, POSITIVE, Range(1e-3, 1.0), "learning rate eta of the local steps"]


@dataclass(frozen=True)
class Step:
    """Where a local step stands: what a rule may read at its three places."""

    weights: Tensors
    buffers: Tensors
    batch: Any
    lr: float
    gradient: Gradient
    client: Sets
    message: Message


class LocalSGD(FederatedRule):
    """Base: K local steps of a direction that the rule mixes, and a server step along the mean of all directions.

    ::

        client: y <- x;   K times:   g <- clip(grad f_i(y)) + wd y;   d <- what the rule mixes;   y <- y - eta d
        server: u <- aggregate_i (x - y_i) / (eta K);   x <- x - gamma u
    """

    reply_sets: ClassVar[tuple[str, ...]] = ("update",)
    averages_gradients: ClassVar[bool] = False

    local_lr: LocalLr = 0.1
    local_steps: Annotated[int, COUNT, "local steps K; a client may take fewer"] = 10
    server_lr: Annotated[float | None, POSITIVE, "server step gamma; None: eta K, with which models are averaged"] = (
        None
    )
    weight_decay: WeightDecay = 0.0
    weight_decay_position: Annotated[
        Literal["before_mix", "after_mix"], "weight decay is added to the gradient, or to the mixed direction"
    ] = "before_mix"
    max_norm: Annotated[float | None, POSITIVE, "largest norm of a gradient over all tensors"] = None
    participation: Annotated[float, SHARE, "share of the clients that take part in a round"] = 1.0
    weighting: Annotated[Literal["uniform", "examples"], "clients count alike, or by their numbers of records"] = (
        "uniform"
    )
    unequal_steps: Annotated[
        Literal["normalize", "average"], "a client's way is divided by its own number of steps, or by K"
    ] = "normalize"
    aggregator: Annotated[Aggregator, Argument("what makes one vector of those of the clients")] = Mean()

    def _begin(self, values: dict[str, Any]) -> None:
        name, aggregator = type(self).__name__, values["aggregator"]
        if not isinstance(aggregator, Aggregator):
            raise TypeError(f"{name}: aggregator must be an Aggregator, got {aggregator!r}")
        if values["weighting"] == "examples" and aggregator != Mean():
            raise ValueError(f"{name}: weighting must be 'uniform' with {aggregator!r}, got 'examples'")
        super()._begin(values)

    def select(self, clients: Sequence[ClientId], generator: torch.Generator) -> list[ClientId]:
        """``participation`` of the clients, at least one, drawn without replacement."""
        count = max(1, round(self.participation * len(clients)))
        if count == len(clients):
            return list(clients)
        chosen = torch.randperm(len(clients), generator=generator)[:count].sort().values
        return [clients[i] for i in chosen.tolist()]

    def records(
        self, examples: int, batch_size: int, generator: torch.Generator, count: int | None = None
    ) -> list[Tensor]:
        """K batches from one pass over the records after another, each in a new order."""
        size, steps = min(batch_size, examples), count or self.local_steps
        passes = -(-size * steps // examples)
        order = torch.cat([torch.randperm(examples, generator=generator) for _ in range(passes)])
        return list(order[: size * steps].split(size))

    def local(
        self, gradient: Gradient, client: Sets, message: Message, batches: Sequence[Any], examples: int,
        draws: Tensors | None,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        """The K local steps."""
        start = message.sets["arrays"]
        weights, buffers, total = start, message.sets["buffers"], None
        for lr, batch in zip(self._lrs(message.scalars["lr"], len(batches)), batches, strict=True):
            fresh, new_buffers = gradient(weights, buffers, batch)
            step = Step(weights, buffers, batch, lr, gradient, client, message)
            fresh, buffers = self._prepared(fresh, weights), new_buffers
            if self.averages_gradients:
                total = fresh if total is None else added(total, fresh)
            direction = self._direction(fresh, step)
            if self.weight_decay_position == "after_mix" and self.weight_decay:
                direction = added(direction, weights, self.weight_decay)
            weights = self._stepped(added(weights, direction, -lr), step)
        way = added(start, weights, -1.0)
        average = None if total is None else scaled(total, 1 / len(batches))
        kept, sent = self._kept(client, message, way, average, batches, gradient)
        update = scaled(way, 1 / self._divisor(message, len(batches)))
        return {"update": update, "buffers": buffers, **sent}, kept

    def plain_reply(self, message: Message, weights: Tensors, buffers: Tensors, examples: float) -> Message:
        """The reply that stands for weights which a client came to by steps of its own, knowing nothing of the rule.

        Args:
            message: what the server sent.
            weights: what the client made of them.
            buffers: its buffers.
            examples: number of records that it has.

        Raises:
            ValueError: clients of this rule must keep or send more.
        """
        if self.client_sets or self.reply_sets != ("update",):
            raise ValueError(f"{type(self).__name__}: its clients must send {list(self.reply_sets)}, got weights alone")
        way = added(message.sets["arrays"], weights, -1.0)
        update = scaled(way, 1 / self._divisor(message, self.local_steps))
        return Message(message.round, {"update": update, "buffers": buffers}, {"examples": examples})

    def _prepared(self, fresh: Tensors, weights: Tensors) -> Tensors:
        """First place: the gradient as it goes into the mix."""
        if self.max_norm is not None:
            fresh = clipped(fresh, self.max_norm)
        if self.weight_decay_position == "before_mix" and self.weight_decay:
            fresh = added(fresh, weights, self.weight_decay)
        return fresh

    def _direction(self, fresh: Tensors, step: Step) -> Tensors:
        """Second place: the mix."""
        return fresh

    def _stepped(self, weights: Tensors, step: Step) -> Tensors:
        """Third place: the weights after the step."""
        return weights

    def _kept(
        self, client: Sets, message: Message, way: Tensors, average: Tensors | None, batches: Sequence[Any],
        gradient: Gradient,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        """The sets that a client keeps, and those that it sends beside ``update``."""
        return {}, {}

    def _lr(self, round: int) -> float:
        """The local learning rate of a round."""
        return self.local_lr

    def _lrs(self, lr: float, steps: int) -> list[float]:
        """The learning rates of the local steps of a round."""
        return [lr] * steps

    def _divisor(self, message: Message, steps: int) -> float:
        """What turns a client's way into a mean direction."""
        return message.scalars["lr"] * (steps if self.unequal_steps == "normalize" else self.local_steps)

    def _server_lr(self, state: State) -> float:
        if self.server_lr is not None:
            return self.server_lr
        return self._lr(state.counters["round"]) * self.local_steps

    def _sent(self, state: State) -> dict[str, float]:
        return {"lr": self._lr(state.counters["round"])}

    def _fault(self, state: State, message: Message) -> str:
        """Besides, a reply without the number that it would be weighed by."""
        if self.weighting == "examples" and "examples" not in message.scalars:
            return f"the reply has {sorted(map(str, message.scalars))}, without the 'examples' that it is weighed by"
        return super()._fault(state, message)

    def _combined(self, replies: Sequence[Reply], name: str) -> Tensors:
        """One set of the replies' ones, by the aggregator or by numbers of records."""
        if self.weighting == "uniform":
            return self._uniform(replies, name)
        like, vectors = replies[0][1].sets[name], stacked(replies, name)
        weights = torch.tensor([float(m.scalars["examples"]) for _, m in replies], dtype=torch.float64)
        vectors = at_least_float32(vectors)
        return unrowed((weights / weights.sum()).to(vectors) @ vectors, like)

    def _uniform(self, replies: Sequence[Reply], name: str) -> Tensors:
        """One set of the replies' ones, by the aggregator."""
        return self._one_of([message.sets[name] for _, message in replies])

    def _one_of(self, many: Sequence[Tensors]) -> Tensors:
        """Named tensors of n clients as one: by the aggregator."""
        if self.aggregator == Mean():
            found = mean(many)  # what the aggregator gives without a matrix of all, but where a sum overflows
            if all(math.isfinite(t.sum()) for t in found.values()):
                return found
        return unrowed(self.aggregator(rows(many)), many[0])

    def _aggregated(self, state: State, good: Sequence[Reply], sent: int, draws: Tensors | None) -> dict[str, Tensors]:
        update = self._combined(good, "update")
        remembered = self._remembered(state, good, update)
        direction = self._server_direction(update, remembered)
        return {**remembered, "arrays": added(state.sets["arrays"], direction, -self._server_lr(state))}

    def _remembered(self, state: State, good: Sequence[Reply], update: Tensors) -> dict[str, Tensors]:
        """The server's memories behind the round."""
        return {}

    def _server_direction(self, update: Tensors, remembered: dict[str, Tensors]) -> Tensors:
        """What the server steps along."""
        return update
