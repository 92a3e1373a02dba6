"""What every rule has: the state of server and clients, the messages, the update of a client, the aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from polyak.federated._methods import Frozen
from polyak.federated.rules.messages import Aggregated, ClientId, Message, Reply, Sets, State, fault_of, sorted_out
from polyak.federated.rules.tensors import Tensors, mean, rows, zeros_like

Place = Literal["client", "server"]


class Gradient(Protocol):
    """The gradient of a client's loss, a pure function: the same arguments, dropout included, the same result."""

    def __call__(self, weights: Tensors, buffers: Tensors, batch: Any) -> tuple[Tensors, Tensors]:
        """The mean gradient over a batch, and the buffers (running statistics) behind it."""

    def per_record(self, weights: Tensors, buffers: Tensors, batch: Any) -> Tensors:
        """The gradient of each record by itself, along a new first dimension."""


class FederatedRule(Frozen):
    """Base of rules of learning with a server: pure functions of states and messages, run by any engine.

    ::

        server: message <- broadcast(state)
        client: reply, state_i <- client_update(gradient, state_i, message, batches)
        server: state <- aggregate(state, replies)

    Nothing is modified in place, and nothing is drawn: an engine draws with :meth:`select` and :meth:`draws` and hands
    it in, so that a round can be run again. Sets of tensors are dictionaries with the names of the model's weights.

    Attributes:
        server_sets: what the server keeps beside ``arrays`` (and ``buffers``), all of which it sends.
        client_sets: what each client keeps.
        reply_sets: what a client sends (and ``buffers``).
        everyone: whether clients that were not selected do their update too.
        batched: whether :meth:`local` can be mapped over clients with ``torch.func.vmap``.
    """

    server_sets: ClassVar[tuple[str, ...]] = ()
    client_sets: ClassVar[tuple[str, ...]] = ()
    reply_sets: ClassVar[tuple[str, ...]] = ()
    batched: ClassVar[bool] = True

    @property
    def everyone(self) -> bool:
        """Whether clients that were not selected do their update too."""
        return False

    def server_state(
        self, weights: Mapping[str, Tensor], num_clients: int, buffers: Mapping[str, Tensor] | None = None
    ) -> State:
        """The server's state before the first round.

        Args:
            weights: of the model; copied.
            num_clients: all there are, selected or not.
            buffers: the model's running statistics; copied.

        Raises:
            ValueError: no weights, or no clients.
        """
        name = type(self).__name__
        if not weights:
            raise ValueError(f"{name}: weights must be at least one tensor, got none")
        if num_clients < 1:
            raise ValueError(f"{name}: num_clients must be at least 1, got {num_clients}")
        arrays = {n: w.detach().clone() for n, w in weights.items()}
        sets = {"arrays": arrays, "buffers": {n: b.detach().clone() for n, b in (buffers or {}).items()}}
        sets |= {s: zeros_like(arrays) for s in self.server_sets}
        return State(sets, {"round": 0, "clients": num_clients, "warm": 0})

    def client_state(self, weights: Mapping[str, Tensor]) -> State:
        """A client's state before it was ever selected: zeros."""
        return State({s: zeros_like(weights) for s in self.client_sets})

    def broadcast(self, state: State) -> Message:
        """What the server sends to every client of a round: all that it keeps."""
        return Message(state.counters["round"], state.sets, self._sent(state))

    def client_update(
        self, gradient: Gradient, state: State, message: Message, batches: Sequence[Any], examples: int = 1,
        draws: Tensors | None = None,
    ) -> tuple[Message, State]:  # fmt: skip
        """A client's part of a round.

        Args:
            gradient: of its loss.
            state: what it keeps.
            message: what the server sent.
            batches: one a local step; for the private rules one, the records drawn.
            examples: number of records that it has.
            draws: standard normal numbers, for rules that add noise at the client.

        Raises:
            ValueError: no batches, or a state that does not fit the message's weights.
        """
        name = type(self).__name__
        if not batches:
            raise ValueError(f"{name}: batches must be at least one, got none: a client without data cannot take part")
        if examples < 1:
            raise ValueError(f"{name}: examples must be at least 1, got {examples}")
        self.fits(state, message.sets["arrays"])
        sets, kept = self.local(gradient, state.sets, message, batches, examples, draws)
        scalars = {"examples": float(examples), "steps": float(len(batches))}
        return Message(message.round, sets, scalars), replace(state, sets=kept)

    def fits(self, state: State, weights: Tensors) -> None:
        """Refuse a client's state that is of another model or rule.

        Raises:
            ValueError: names the set and what is wrong with it.
        """
        name = type(self).__name__
        if set(state.sets) != set(self.client_sets):
            raise ValueError(f"{name}: a client's state has the sets {list(self.client_sets)}, got {list(state.sets)}")
        for s, tensors in state.sets.items():
            if fault := fault_of(tensors, weights, finite=False):
                raise ValueError(f"{name}: the client's {s} {fault}")

    def local(
        self, gradient: Gradient, client: Sets, message: Message, batches: Sequence[Any], examples: int,
        draws: Tensors | None,
    ) -> tuple[dict[str, Tensors], dict[str, Tensors]]:  # fmt: skip
        """:meth:`client_update` on tensors alone: the sets to send, and those to keep."""
        raise NotImplementedError

    @torch.no_grad()
    def aggregate(self, state: State, replies: Sequence[Reply], draws: Tensors | None = None) -> Aggregated:
        """The server's part of a round.

        Args:
            state: what it keeps; not modified.
            replies: client and message, for each that answered.
            draws: what :meth:`draws` gave for the server.

        Raises:
            ValueError: no replies, two of one client, none that can be used, or too few for the aggregator.
        """
        name, round = type(self).__name__, state.counters["round"]
        good, dropped = sorted_out(replies, self._expected(state), round, name, partial(self._fault, state))
        sets = self._aggregated(state, good, len(replies), draws)
        buffers = self._buffers(state, [message for _, message in good])
        counters = {**state.counters, "round": round + 1}
        new = State({**state.sets, **sets, "buffers": buffers}, counters)
        return Aggregated(new, [client for client, _ in good], dropped)

    def select(self, clients: Sequence[ClientId], generator: torch.Generator) -> list[ClientId]:
        """The clients of a round, in the order of ``clients``; here all."""
        return list(clients)

    def records(
        self, examples: int, batch_size: int, generator: torch.Generator, count: int | None = None
    ) -> list[Tensor]:
        """The records of each batch of a client's update, as indices.

        Args:
            examples: records that the client has.
            batch_size: records of a batch.
            generator: to draw with.
            count: batches; None: those of an update.
        """
        raise NotImplementedError

    def draws_at(self, place: Place) -> bool:
        """Whether a place needs random numbers at all."""
        return False

    def draws(self, place: Place, state: State, clients: int, generator: torch.Generator) -> Tensors | None:
        """What a place needs of random numbers: for the server once a round, for a client once an update."""
        return None

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model with which the rule makes no sense."""

    def _sent(self, state: State) -> dict[str, float]:
        """The scalars that go with the tensors."""
        return {}

    def _fault(self, state: State, message: Message) -> str:
        """What a rule has against a reply that is otherwise in order; empty for nothing."""
        for name, buffer in message.sets["buffers"].items():
            if name.rpartition(".")[2] == "running_var" and bool((buffer < 0).any()):
                return f"buffers has negative values in {name!r}, a variance"
        return ""

    def _expected(self, state: State) -> dict[str, Tensors]:
        arrays = state.sets["arrays"]
        return {"buffers": state.sets["buffers"], **dict.fromkeys(self.reply_sets, arrays)}

    def _aggregated(self, state: State, good: Sequence[Reply], sent: int, draws: Tensors | None) -> dict[str, Tensors]:
        """The sets that change, from the replies that can be used out of ``sent``."""
        raise NotImplementedError

    def _buffers(self, state: State, messages: Sequence[Message]) -> Tensors:
        """Floating buffers are those of the clients in one; the server keeps its whole numbers."""
        held = state.sets["buffers"]
        many = [{n: m.sets["buffers"][n] for n, b in held.items() if b.is_floating_point()} for m in messages]
        return {**held, **(self._one_of(many) if many[0] else {})}

    def _one_of(self, many: Sequence[Tensors]) -> Tensors:
        """Named tensors of n clients as one: their mean."""
        return mean(many)


def stacked(replies: Sequence[Reply], name: str) -> Tensor:
    """One set of all replies, as rows."""
    return rows([message.sets[name] for _, message in replies])
