"""What a server holds of a run, and its file."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord

from polyak.federated.flower.checkpoint import load, save
from polyak.federated.flower.draws import generator_of
from polyak.federated.flower.records import Layout, Unusable, from_record, to_record
from polyak.federated.rules.base import FederatedRule
from polyak.federated.rules.messages import State, fault_of
from polyak.federated.rules.tensors import Tensors


@dataclass
class Run:
    """The server's state, and what it knows of nodes.

    Args:
        rule: the rule.
        layout: of the model.
        first: the weights and buffers that it begins with.
        rest: entries of the model that stay as they are.
        seed: of what the server draws.
        token: names the run, so that nodes know their states of it.
        state: the rule's; None before the first round.
        done: Flower's number of the last round that is over.
        resumed: the one that was over when this process began.
        accepted: the last round in which a node's work counted, for each that was ever asked; -1: none.
    """

    rule: FederatedRule
    layout: Layout
    first: tuple[Tensors, Tensors]
    rest: Tensors
    seed: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State | None = None
    done: int = 0
    resumed: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    generator: torch.Generator = field(init=False)
    _record: ArrayRecord | None = None

    def __post_init__(self) -> None:
        self.generator = generator_of(self.seed)

    @classmethod
    def begin(
        cls, rule: FederatedRule, layout: Layout, arrays: ArrayRecord, seed: int | None, path: Path | None
    ) -> Run:
        """A new run, or that of a file.

        Raises:
            ValueError: arrays or a file that do not fit the rule and the model.
        """
        try:
            weights, buffers, rest = layout.split(from_record(arrays, layout.like))
        except Unusable as error:
            raise ValueError(f"Strategy: initial_arrays must be the model's state_dict: it {error}") from error
        run = cls(rule, layout, (weights, buffers), rest, secrets.randbits(62) if seed is None else seed)
        if path is not None and (saved := load(path)) is not None:
            run._restore(saved, path)
        return run

    def begun(self, clients: int) -> State:
        """The rule's state; of so many clients, if the run has not begun."""
        if self.state is None:
            self.state = self.rule.server_state(self.first[0], clients, self.first[1])
        return self.state

    def last_accepted(self, node: int) -> dict[str, int]:
        """The round of a node's last work that counted, as an entry for its message.

        Nothing for a node that a resumed run meets under a new id: it then takes its last work as counted.
        """
        known = node in self.accepted or not self.resumed
        last = self.accepted.setdefault(node, -1)
        return {"accepted": last} if known else {}

    def advance(self, state: State, nodes: list[int]) -> None:
        """On to the state after a round, in which the work of some nodes counted."""
        round = state.counters["round"] - 1
        self.accepted |= dict.fromkeys(nodes, round)
        self.state, self._record = state, None

    def evaluation(self, server_round: int) -> torch.Generator:
        """What the evaluation of a round draws from: of the round alone, as one that begins again has no other."""
        return torch.Generator().manual_seed((self.seed + server_round) % 2**63)

    def record(self) -> ArrayRecord:
        """The model, all entries."""
        if self._record is None:
            weights, buffers = self.first
            if self.state is not None:
                weights, buffers = self.state.sets["arrays"], self.state.sets["buffers"]
            self._record = to_record(self.layout.joined(weights, buffers, self.rest))
        return self._record

    def save(self, path: Path) -> None:
        """Write the run's file."""
        assert self.state is not None
        save(path, {
            "rule": repr(self.rule), "token": self.token, "server": self.state.state_dict(), "rest": self.rest,
            "seed": self.seed, "generator": self.generator.get_state(), "done": self.done, "accepted": self.accepted,
        })  # fmt: skip

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        if saved.get("rule") != repr(self.rule):
            raise ValueError(f"Strategy: checkpoint {path} must be of {self.rule!r}, got {saved.get('rule')}")
        state = State.from_state_dict(saved["server"])
        fresh = self.rule.server_state(self.first[0], 1, self.first[1])
        for s, tensors in {**fresh.sets, "rest": self.rest}.items():
            if fault := fault_of({**state.sets, "rest": saved["rest"]}.get(s), tensors, finite=False):
                raise ValueError(f"Strategy: checkpoint {path} must fit the model, but its {s} {fault}")
        self.generator.set_state(saved["generator"])
        self.state, self.rest, self.token, self.seed = state, saved["rest"], saved["token"], saved["seed"]
        self.done = self.resumed = saved["done"]
        self.accepted = dict(saved["accepted"])
