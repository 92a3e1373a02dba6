"""The updates of many clients: one by one, or all at once by ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from polyak.federated.gradients import Batch
from polyak.federated.rules.base import FederatedRule, Gradient
from polyak.federated.rules.messages import ClientId, Message, State
from polyak.federated.rules.tensors import Tensors

Work = tuple[list[Batch], int, Tensors | None]
Done = dict[ClientId, tuple[Message, State]]
CACHED = 1 << 24
"""Bytes of weights of the clients computed at once: what they need fits a cache, and calls are still few."""


def each(
    rule: FederatedRule, gradient: Gradient, message: Message, held: Mapping[ClientId, State],
    work: Mapping[ClientId, Work],
) -> Done:  # fmt: skip
    """One by one."""
    return {
        c: rule.client_update(gradient, held[c], message, batches, examples, draws)
        for c, (batches, examples, draws) in work.items()
    }


def together(
    rule: FederatedRule, gradient: Gradient, message: Message, held: Mapping[ClientId, State],
    work: Mapping[ClientId, Work], chunk: int | None = None,
) -> Done:  # fmt: skip
    """Those whose batches have the same shapes at once."""
    groups: dict[Any, list[ClientId]] = {}
    for c, (batches, _, _) in work.items():
        groups.setdefault(tuple((b.inputs.shape, b.targets.shape) for b in batches), []).append(c)
    done: Done = {}
    for members in groups.values():
        done |= _at_once(rule, gradient, message, {c: held[c] for c in members}, work, chunk)
    return {c: done[c] for c in work}


def _at_once(
    rule: FederatedRule, gradient: Gradient, message: Message, held: Mapping[ClientId, State],
    work: Mapping[ClientId, Work], chunk: int | None,
) -> Done:  # fmt: skip
    for state in held.values():
        rule.fits(state, message.sets["arrays"])
    done: Done = {}
    ids = list(held)
    size = chunk or max(1, CACHED // sum(w.numel() * w.element_size() for w in message.sets["arrays"].values()))
    for start in range(0, len(ids), size):
        members = ids[start : start + size]
        clients = {s: _stacked([held[c].sets[s] for c in members]) for s in rule.client_sets}
        batches = [_batch([work[c][0][k] for c in members]) for k in range(len(work[members[0]][0]))]

        buffers = {n: b.expand(len(members), *b.shape) for n, b in message.sets["buffers"].items()}
        sent, kept = vmap(_update(rule, gradient, message))(clients, buffers, batches)
        for i, c in enumerate(members):
            scalars = {"examples": float(work[c][1]), "steps": float(len(batches))}
            reply = Message(message.round, _nth(sent, i), scalars)
            done[c] = (reply, State(_nth(kept, i), held[c].counters))
    return done


def _update(rule: FederatedRule, gradient: Gradient, message: Message) -> Any:
    """A client's update as a function of what differs between clients; that includes buffers, which steps change."""

    def update(client: dict[str, Tensors], buffers: Tensors, batches: Sequence[tuple[Tensor, Tensor]]) -> Any:
        mine = replace(message, sets={**message.sets, "buffers": buffers})
        return rule.local(gradient, client, mine, [Batch(*one) for one in batches], 1, None)

    return update


def _stacked(many: Sequence[Tensors]) -> Tensors:
    return {n: torch.stack([one[n] for one in many]) for n in many[0]}


def _batch(many: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    return torch.stack([one.inputs for one in many]), torch.stack([one.targets for one in many])


def _nth(sets: Mapping[str, Tensors], i: int) -> dict[str, Tensors]:
    return {s: {n: t[i] for n, t in tensors.items()} for s, tensors in sets.items()}
