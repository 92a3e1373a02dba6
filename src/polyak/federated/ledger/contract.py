"""The interface of the contract: what a program on a chain has to implement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from polyak.federated.ledger.terms import Entry, State, Terms


@runtime_checkable
class Contract(Protocol):
    """What a contract on a chain implements; :class:`~polyak.federated.ledger.Ledger` does over one file.

    Every call adds one entry, or raises :class:`~polyak.federated.ledger.Refused` and adds none. On a chain the sender
    of a transaction is the agent; a file believes the name.
    """

    @property
    def terms(self) -> Terms:
        """What the contract is made of."""

    @property
    def state(self) -> State:
        """What follows from the entries so far."""

    def entries(self) -> Iterator[Entry]:
        """All entries in order: anybody can replay them."""

    def register(self, agent: str) -> Entry:
        """Take part from this round on, with the stake of the terms. In the phase ``open``."""

    def commit(self, agent: str, commitment: str) -> Entry:
        """Post :func:`~polyak.federated.ledger.commitment` of an update. In the phase ``commit``."""

    def reveal(self, agent: str, update: str, salt: str) -> Entry:
        """Show the hash of the update, and the salt. In the phase ``reveal``."""

    def aggregate(self, model: str, included: Mapping[str, str]) -> Entry:
        """Post the hash of the new model and of each update in it. In the phase ``aggregate``, which it ends."""

    def evaluate(self, evaluator: str, contributions: Mapping[str, float]) -> Entry:
        """Post the contribution of each update in the model. In the phase ``evaluate``."""

    def reward(self) -> Entry:
        """Pay by the rule; the payments are the entry's data. In the phase ``reward``, which it ends."""

    def close(self) -> Entry:
        """End the phase: the deadline of whoever has posted nothing."""
