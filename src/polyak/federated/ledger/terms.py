"""What a contract is made of, what is written in its ledger, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from polyak.declare import whole
from polyak.federated.ledger.exact import decimal_text, from_text
from polyak.federated.ledger.reward import AMOUNT, Reputation, RewardRule

PHASES = ("open", "commit", "reveal", "aggregate", "evaluate", "reward")


@dataclass(frozen=True)
class Terms:
    """What the contract is made of; its hash is what the chain begins with.

    Args:
        sponsor: who deposits the pool.
        aggregator: who ends phases, and posts the hashes of new models and the payments.
        evaluators: who post contributions, at least one; they may be agents.
        pool: what is to be paid, in whole units, at least 0.
        rounds: over how many rounds, at least 1.
        stake: what an agent deposits when it registers, in whole units, at least 0.
        measure: the name of the measure that evaluators use; for the record.
        rule: from contributions to payments.

    Raises:
        ValueError, TypeError: an empty name, an evaluator twice or none, a number outside what is allowed.
    """

    sponsor: str
    aggregator: str
    evaluators: tuple[str, ...]
    pool: int
    rounds: int
    stake: int = 0
    measure: str = "shapley"
    rule: RewardRule = field(default_factory=RewardRule)

    def __post_init__(self) -> None:
        for name in ("sponsor", "aggregator", "measure"):
            named(getattr(self, name), f"Terms: {name}")
        if not self.evaluators or len(set(self.evaluators)) < len(self.evaluators):
            raise ValueError(f"Terms: evaluators must be at least one, each once, got {self.evaluators}")
        for name in self.evaluators:
            named(name, "Terms: evaluators")
        whole("pool", self.pool, "Terms", AMOUNT)
        whole("rounds", self.rounds, "Terms")
        whole("stake", self.stake, "Terms", AMOUNT)

    def to_data(self) -> dict[str, Any]:
        """All of it as JSON-able data without floats."""
        numbers = {name: decimal_text(getattr(self, name), name) for name in ("pool", "rounds", "stake")}
        names = {"sponsor": self.sponsor, "aggregator": self.aggregator, "evaluators": list(self.evaluators)}
        return {**names, **numbers, "measure": self.measure, "rule": self.rule.to_data()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Terms:
        """The terms whose :meth:`to_data` this is.

        Raises:
            TypeError, ValueError: data of no terms.
        """
        numbers = {name: int(from_text(data.get(name), name)) for name in ("pool", "rounds", "stake")}
        others = {"evaluators": tuple(data.get("evaluators", ())), "rule": RewardRule.from_data(data.get("rule", {}))}
        return cls(**{**data, **numbers, **others})


def named(name: Any, what: str) -> str:
    """A name as it was given; refuses what is none."""
    if not isinstance(name, str) or not name or len(name) > 200:
        raise ValueError(f"{what} must be a name of 1 to 200 characters, got {name!r}")
    return name


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger.

    Attributes:
        index: its place, from 0.
        round: the round, from 0.
        kind: ``register``, ``close``, ``commit``, ``reveal``, ``aggregate``, ``evaluate`` or ``reward``.
        agent: who posts it.
        payload: a hash, or nothing.
        data: names to decimal texts or hashes.
    """

    index: int
    round: int
    kind: str
    agent: str
    payload: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """A registered agent: stake and balance in whole units, and its reputation."""

    stake: int
    balance: int = 0
    reputation: Reputation = field(default_factory=Reputation)


@dataclass(frozen=True)
class State:
    """All that follows from the entries so far; nothing in it is modified, each entry makes another.

    Attributes:
        round: the round, from 0; that of the terms when all are over.
        phase: one of ``PHASES``, or ``"over"``.
        members: agents by name.
        commitments: what agents of this round have committed to.
        revealed: the hashes of the updates that they have shown.
        included: the agents whose updates are in the new model.
        scalars: what each evaluator has posted, an agent's contribution by name.
        model: the hash of the last model.
        carried: whole units that roll over into the budget of this round.
        shown: the updates that were revealed in earlier rounds, with the agents that did.
        disputed: rounds and agents about whom evaluators differed by more than the tolerance.
    """

    round: int = 0
    phase: str = "open"
    members: Mapping[str, Member] = field(default_factory=dict)
    commitments: Mapping[str, str] = field(default_factory=dict)
    revealed: Mapping[str, str] = field(default_factory=dict)
    included: tuple[str, ...] = ()
    scalars: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)
    model: str = ""
    carried: int = 0
    shown: Mapping[str, frozenset[str]] = field(default_factory=dict)
    disputed: tuple[tuple[int, str], ...] = ()

    @property
    def balances(self) -> dict[str, int]:
        """What each agent has been paid so far."""
        return {name: member.balance for name, member in self.members.items()}
