"""What a node keeps between rounds: in Flower's context, or in a folder of its own that outlives the run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context

from polyak.federated.flower.checkpoint import load, save
from polyak.federated.flower.records import RULE, Unusable, from_record, integer, to_record
from polyak.federated.rules.messages import Sets, State
from polyak.federated.rules.tensors import Tensors

COUNTED, LAST = f"{RULE}.counted.", f"{RULE}.last."


@dataclass(frozen=True)
class Kept:
    """A node's state, as of the last work that counted, and as of its last work, of which it does not know yet.

    A server says with each message which work of the node counted last: a reply that was lost, late or dropped, and
    a round that a server begins again after it was killed, leave no trace in the state.

    Args:
        run: names the run.
        round: of the last work; -1: none.
        seed: of what the node draws.
        counted: the sets behind the last work that counted; None: of a node that has done none.
        last: the sets behind the last work; None: where it is known to have counted.
    """

    run: str = ""
    round: int = -1
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    counted: Sets | None = None
    last: Sets | None = None

    def before(self, order: ConfigRecord) -> Kept:
        """What it is before the work that a server orders.

        Raises:
            Unusable: the order is of a round before the last one.
        """
        run, round = str(order["run"]), integer(order, "round")
        if run != self.run:
            return replace(self, run=run, round=-1, counted=None, last=None)
        if round < self.round:
            raise Unusable(f"is of round {round}, but the node has answered in round {self.round}")
        accepted = integer(order, "accepted") if "accepted" in order else None
        counts = self.round < round if accepted is None else self.round == accepted
        return replace(self, counted=self.last if counts and self.last is not None else self.counted, last=None)

    def state(self, otherwise: State) -> State:
        """The rule's state of the node."""
        return otherwise if self.counted is None else State(self.counted)


def from_context(context: Context, names: tuple[str, ...], weights: Tensors) -> Kept:
    """What Flower's context holds.

    Raises:
        Unusable: it is of another model.
    """
    state = context.state
    if RULE not in state.config_records:
        return Kept()
    about = state.config_records[RULE]

    def sets(prefix: str, there: str) -> Sets | None:
        return {s: from_record(state.get(prefix + s), weights) for s in names} if about[there] else None

    run, round, seed = str(about["run"]), integer(about, "round"), integer(about, "seed")
    return Kept(run, round, seed, sets(COUNTED, "counted"), sets(LAST, "last"))


def to_context(kept: Kept, context: Context) -> None:
    """Put it into Flower's context."""
    there = {"counted": kept.counted is not None, "last": kept.last is not None}
    records: dict[str, ArrayRecord] = {}
    for prefix, sets in ((COUNTED, kept.counted), (LAST, kept.last)):
        records |= {prefix + s: to_record(tensors) for s, tensors in (sets or {}).items()}
    for old in [n for n in context.state if n.startswith((COUNTED, LAST))]:
        del context.state[old]
    for name, record in records.items():
        context.state[name] = record
    context.state[RULE] = ConfigRecord({"run": kept.run, "round": kept.round, "seed": kept.seed, **there})


def from_file(path: Path) -> Kept:
    """What a file holds; a new one where there is none.

    Raises:
        ValueError: it is another file.
    """
    saved: Mapping[str, Any] | None = load(path)
    if saved is not None and set(saved) != set(vars(Kept())):
        raise ValueError(f"{path} must hold the state of a node, got {sorted(map(str, saved))}")
    return Kept() if saved is None else Kept(**saved)


def to_file(kept: Kept, path: Path) -> None:
    """Write it, whole or not at all."""
    save(path, {**vars(kept)})
