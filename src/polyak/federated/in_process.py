"""All clients on one machine: what runs a rule without a network, and repeats it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.declare import whole
from polyak.federated.clients import each, together
from polyak.federated.gradients import Batch, Loss, ModelGradient
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.messages import ClientId, Message, State, fault_of
from polyak.federated.rules.scaffold import WarmStarted
from polyak.federated.rules.tensors import Tensors, added, scaled, zeros_like

Data = Mapping[ClientId, tuple[Tensor, Tensor]]
Intercept = Callable[[ClientId, Message], Message | None]


@dataclass(frozen=True)
class Round:
    """What happened in a round.

    Args:
        number: of the round, from 0.
        selected: the clients that should answer.
        accepted: those whose replies were used.
        dropped: those whose replies could not be used, with the reason.
        silent: those that never answered.
        fresh: those of the updated ones that had no state yet.
    """

    number: int
    selected: list[ClientId]
    accepted: list[ClientId]
    dropped: dict[ClientId, str]
    silent: list[ClientId] = field(default_factory=list)
    fresh: list[ClientId] = field(default_factory=list)


class InProcess:
    """Runs a rule on clients that all live here.

    Selection, batches and noise are drawn from one generator in the order of the clients, so that two runs are equal,
    both modes draw alike, and a run that is saved and loaded goes on bit for bit.

    Args:
        rule: the rule.
        model: the module; copied. Its trainable weights travel, its buffers are averaged.
        clients: inputs and targets of each client, by id (a whole number or a string).
        loss: mean loss of a batch of outputs and targets.
        batch_size: records of a local step; of a client with fewer all.
        generator: from which everything random is drawn; on the CPU.
        mode: ``"vmap"`` computes many clients at once, for models that draw nothing (dropout); ``"loop"`` one by one.
        chunk: clients computed at once; None: as many as fit a few MB.

    Raises:
        ValueError: no clients, a client without data, a model that the rule refuses, or a rule that has no vmap mode.
    """

    def __init__(
        self, rule: FederatedRule, model: nn.Module, clients: Data, *, loss: Loss = F.cross_entropy,
        batch_size: int = 32, generator: torch.Generator | None = None, mode: Literal["vmap", "loop"] = "loop",
        chunk: int | None = None,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        _check_data(clients, name)
        if mode not in ("vmap", "loop"):
            raise ValueError(f"{name}: mode must be 'vmap' or 'loop', got {mode!r}")
        if mode == "vmap" and not rule.batched:
            raise ValueError(f"{name}: mode must be 'loop' with {type(rule).__name__}, whose clients draw, got 'vmap'")
        rule.check_model(model)
        self.rule, self.clients, self.mode = rule, dict(clients), mode
        self.batch_size = whole("batch_size", batch_size, name)
        self.chunk = None if chunk is None else whole("chunk", chunk, name)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.gradient = ModelGradient(deepcopy(model), loss)
        self.state = rule.server_state(self.gradient.weights(), len(self.clients), self.gradient.buffers())
        self.states: dict[ClientId, State] = {}

    def run(self, rounds: int) -> list[Round]:
        """Several rounds."""
        return [self.round() for _ in range(rounds)]

    @torch.no_grad()
    def round(
        self, selected: Sequence[ClientId] | None = None, *, steps: Mapping[ClientId, int] | None = None,
        silent: Iterable[ClientId] = (), batches: Mapping[ClientId, Sequence[Batch]] | None = None,
        intercept: Intercept | None = None,
    ) -> Round:  # fmt: skip
        """One round. If it raises, nothing has changed but the generator.

        Args:
            selected: the clients of the round; None: drawn by the rule.
            steps: for stragglers, how many local steps they come to.
            silent: clients that never answer; they keep their old states.
            batches: for each client that does an update its batches, instead of drawn ones.
            intercept: what becomes of a reply on its way, ``f(client, message)``, of a copy; None: it is lost.

        Raises:
            ValueError: a client that there is not, no clients, a number of steps out of range, or no usable reply.
        """
        number, steps = self.state.counters["round"], {} if steps is None else steps
        chosen = self._chosen(selected, steps, silent)
        state, held = self._warm()
        workers = list(self.clients) if self.rule.everyone else chosen
        fresh = [c for c in workers if c not in held]
        held = held | {c: self.rule.client_state(state.sets["arrays"]) for c in fresh}
        work = {c: self._work(c, state, steps, batches) for c in workers}
        draws = self.rule.draws("server", state, len(chosen), self.generator)
        done = self._computed(self.rule.broadcast(state), {c: held[c] for c in workers}, work)
        replies = {c: done[c][0] for c in chosen if c not in silent}
        if intercept is not None:
            replies = {c: m for c, one in replies.items() if (m := intercept(c, _copied(one))) is not None}
        found = self.rule.aggregate(state, list(replies.items()), draws)
        kept = set(found.accepted) | {c for c in workers if c not in chosen and _finite(done[c][1])}
        self.state = found.state
        self.states = {c: done[c][1] if c in kept and c in done else held[c] for c in held}
        lost = [c for c in chosen if c not in replies]
        return Round(number, chosen, found.accepted, found.dropped, lost, fresh)

    def load_into(self, model: nn.Module) -> None:
        """Write the server's weights and buffers into a module of the same kind."""
        model.load_state_dict({**self.state.sets["arrays"], **self.state.sets["buffers"]}, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """All that a run goes on from; ``torch.load`` takes it with ``weights_only=True``."""
        return {
            "rule": repr(self.rule),
            "server": self.state.state_dict(),
            "clients": {c: state.state_dict() for c, state in self.states.items()},
            "known": list(self.states),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of another rule, other arguments, another model or set of clients, or states of clients
                are missing, without which the server's memories would be wrong. Nothing has changed then.
        """
        name = type(self).__name__
        if saved["rule"] != repr(self.rule):
            raise ValueError(f"{name}: the state must be of {self.rule!r}, got {saved['rule']}")
        server = State.from_state_dict(saved["server"])
        clients = {c: State.from_state_dict(one) for c, one in saved["clients"].items()}
        if missing := [c for c in saved["known"] if c not in clients]:
            raise ValueError(
                f"{name}: the state must hold all clients that it has seen, those of {missing} are missing"
            )
        if unknown := [c for c in clients if c not in self.clients]:
            raise ValueError(f"{name}: the state must be of these clients, there are none called {unknown}")
        if server.counters["clients"] != len(self.clients):
            raise ValueError(
                f"{name}: the state must be of {len(self.clients)} clients, got {server.counters['clients']}"
            )
        for s, tensors in self.state.sets.items():
            if fault := fault_of(server.sets.get(s), tensors, finite=False):
                raise ValueError(f"{name}: {s} of the state {fault}")
        for one in clients.values():
            self.rule.fits(one, self.state.sets["arrays"])
        self.generator.set_state(saved["generator"].cpu())
        arrays, buffers = self.gradient.weights(), self.gradient.buffers()
        self.state = _placed(server, {**arrays, **buffers})
        self.states = {c: _placed(one, arrays) for c, one in clients.items()}

    def _chosen(
        self, selected: Sequence[ClientId] | None, steps: Mapping[ClientId, int], silent: Iterable[ClientId]
    ) -> list[ClientId]:
        name, ids = type(self).__name__, list(self.clients)
        if selected is None:
            chosen = self.rule.select(ids, self.generator)
        else:
            chosen = list(selected)
        if not chosen:
            raise ValueError(f"{name}: selected must be at least one client, got none")
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"{name}: selected must name a client once, got {chosen}")
        for where, some in (("selected", chosen), ("steps", steps), ("silent", silent)):
            if unknown := [c for c in some if c not in self.clients]:
                raise ValueError(f"{name}: {where} must name clients, there are none called {unknown}")
        for c, count in steps.items():
            whole(f"steps[{c!r}]", count, name)
        return chosen

    def _warm(self) -> tuple[State, dict[ClientId, State]]:
        """The states before the round: before the first, with warm memories if the rule wants them."""
        rule, state = self.rule, self.state
        if not isinstance(rule, WarmStarted) or not rule.warm_start_batches or state.counters["round"]:
            return state, dict(self.states)
        held = {c: rule.client_state(state.sets["arrays"]) for c in self.clients}
        gradients = {c: self._mean_gradient(c, rule.warm_start_batches) for c in self.clients}
        return rule.warmed(state, held, gradients)

    def _mean_gradient(self, client: ClientId, count: int) -> Tensors:
        arrays, buffers = self.state.sets["arrays"], self.state.sets["buffers"]
        total = zeros_like(arrays)
        for batch in self._drawn(client, count):
            total = added(total, self.gradient(arrays, buffers, batch)[0])
        return scaled(total, 1 / count)

    def _drawn(self, client: ClientId, count: int | None = None) -> list[Batch]:
        inputs, targets = self.clients[client]
        chosen = self.rule.records(len(targets), self.batch_size, self.generator, count)
        seed = int(torch.randint(2**62, (), generator=self.generator))
        rows, sizes = torch.cat(chosen), [len(one) for one in chosen]
        parts = zip(
            inputs[rows.to(inputs.device)].split(sizes), targets[rows.to(targets.device)].split(sizes), strict=True
        )
        return [Batch(x, y, None if self.mode == "vmap" else seed + k) for k, (x, y) in enumerate(parts)]

    def _work(
        self, client: ClientId, state: State, steps: Mapping[ClientId, int],
        batches: Mapping[ClientId, Sequence[Batch]] | None,
    ) -> tuple[list[Batch], int, Tensors | None]:  # fmt: skip
        """Batches, number of records and random numbers of a client's update."""
        given = self._drawn(client) if batches is None else [Batch(*one) for one in batches[client]]
        count = steps.get(client, len(given))
        if count > len(given):
            raise ValueError(f"{type(self).__name__}: steps[{client!r}] must be at most {len(given)}, got {count}")
        draws = self.rule.draws("client", state, 1, self.generator)
        return given[:count], len(self.clients[client][1]), draws

    def _computed(
        self, message: Message, held: Mapping[ClientId, State], work: Mapping[ClientId, tuple[list[Batch], int, Any]]
    ) -> dict[ClientId, tuple[Message, State]]:
        if self.mode == "loop":
            return each(self.rule, self.gradient, message, held, work)
        return together(self.rule, self.gradient, message, held, work, self.chunk)


def _copied(message: Message) -> Message:
    """A reply of its own tensors: a client may keep those that it sends."""
    sets = {s: {n: t.clone() for n, t in tensors.items()} for s, tensors in message.sets.items()}
    return Message(message.round, sets, dict(message.scalars))


def _finite(state: State) -> bool:
    return not any(fault_of(tensors, tensors) for tensors in state.sets.values())


def _placed(state: State, like: Tensors) -> State:
    """A state with copies of its tensors, on the devices of others of the same names."""
    sets = {s: {n: t.to(like[n].device, copy=True) for n, t in one.items()} for s, one in state.sets.items()}
    return State(sets, state.counters)


def _check_data(clients: Data, name: str) -> None:
    if not clients:
        raise ValueError(f"{name}: clients must be at least one, got none")
    for c, (inputs, targets) in clients.items():
        if not isinstance(c, (int, str)):
            raise TypeError(f"{name}: clients must have whole numbers or strings as ids, got {c!r}")
        if not len(targets) or len(inputs) != len(targets):
            raise ValueError(
                f"{name}: clients[{c!r}] must have as many inputs as targets and at least one, "
                f"got {len(inputs)} and {len(targets)}"
            )
