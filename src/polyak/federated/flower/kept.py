"""What a node keeps between rounds: in Flower's context, or in a folder of its own that outlives the run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from polyak.federated.flower.checkpoint import load, save
from polyak.federated.flower.records import RULE, Unusable, from_record, integer, to_record
from polyak.federated.rules.messages import Sets
from polyak.federated.rules.tensors import Tensors

PLACES = ("counted", "last", "reply")


@dataclass(frozen=True)
class Kept:
    """A node's state, as of the last work that counted, and as of its last work, of which it does not know yet.

    A server says with each message which work of the node counted last: a reply that was lost, late or dropped, and
    a round that a server begins again after it was killed, leave no trace in the state.

    Args:
        round: of the last work; -1: none.
        seed: of what the node draws in the run.
        counted: the sets behind the last work that counted; None: of a node that has done none.
        last: the sets behind the last work; None: where it is known to have counted.
        digest: of what the last work was made from, where noise is in it; else empty.
        reply: the sets that were then sent, the only ones that may be sent in that round.
        steps: of the last work.
        examples: of the last work.
    """

    round: int = -1
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    counted: Sets | None = None
    last: Sets | None = None
    digest: str = ""
    reply: Sets | None = None
    steps: int = 0
    examples: int = 0

    def before(self, order: ConfigRecord) -> Kept:
        """What it is before the work that a server orders.

        Raises:
            Unusable: the order is of a round before the last one.
        """
        round = integer(order, "round")
        if round < self.round:
            raise Unusable(f"is of round {round}, but the node has answered in round {self.round}")
        accepted = integer(order, "accepted") if "accepted" in order else None
        counts = self.round < round if accepted is None else self.round == accepted
        counted = self.last if counts and self.last is not None else self.counted
        if round == self.round:
            return replace(self, counted=counted, last=None)
        return replace(self, counted=counted, last=None, digest="", reply=None)


def from_context(context: Context, run: str, names: tuple[str, ...], weights: Tensors, reply: Sets) -> Kept:
    """What Flower's context holds of a run.

    Args:
        context: of the node.
        run: names the run.
        names: of the sets that a node keeps.
        weights: what those must be like.
        reply: what the sets of a reply must be like.

    Raises:
        Unusable: it is of another model.
    """
    state, prefix = context.state, _prefix(run)
    if prefix not in state.config_records:
        return Kept()
    about = state.config_records[prefix]

    def sets(place: str, like: Sets) -> Sets:
        # The node's own work may have been infinite; a reply of it is dropped, and then it goes on without.
        return {s: from_record(state.get(f"{prefix}.{place}.{s}"), one, finite=False) for s, one in like.items()}

    like = {"counted": dict.fromkeys(names, weights), "last": dict.fromkeys(names, weights), "reply": reply}
    there = {place: sets(place, like[place]) if about[place] else None for place in PLACES}
    numbers = {key: integer(about, key) for key in ("round", "seed", "steps", "examples")}
    return Kept(**numbers, **there, digest=str(about["digest"]))  # type: ignore[arg-type]


def to_context(kept: Kept, run: str, context: Context) -> None:
    """Put it into Flower's context."""
    prefix = _prefix(run)
    sets = {place: getattr(kept, place) for place in PLACES}
    numbers = {key: getattr(kept, key) for key in ("round", "seed", "steps", "examples", "digest")}
    for old in [n for n in context.state if n.startswith(f"{prefix}.")]:
        del context.state[old]
    for place, held in sets.items():
        for s, tensors in (held or {}).items():
            context.state[f"{prefix}.{place}.{s}"] = to_record(tensors)
    context.state[prefix] = ConfigRecord({**numbers, **{place: held is not None for place, held in sets.items()}})


def runs_in_context(context: Context) -> list[str]:
    """The runs of which Flower's context holds something."""
    return [n.removeprefix(f"{RULE}.") for n in context.state.config_records if n.startswith(f"{RULE}.")]


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


def _prefix(run: str) -> str:
    return f"{RULE}.{run}"
