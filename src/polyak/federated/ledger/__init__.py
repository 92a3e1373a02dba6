"""Contributions of agents, payments by them, and a ledger that anybody can verify.

* :class:`Shapley`, :class:`Alignment`, :class:`LossGain`, :class:`LeaveOneOut`, :class:`DataSize`: what an update
  contributed, one scalar an agent; :func:`contributions` chooses one.
* :class:`RewardRule`: from contributions to payments in whole units, through a moving average.
* :class:`Ledger`: an append-only hash chain in SQLite, of a contract whose rules are code; :func:`verify` finds
  tampering and names it. :class:`Contract` is the interface that a contract on a real chain implements.

The paper's own measure and rule were not found: these are an interpretation (arXiv 2107.10243).
"""

from polyak.federated.ledger.chain import Head
from polyak.federated.ledger.contract import Contract
from polyak.federated.ledger.contribution import (
    Alignment,
    DataSize,
    LeaveOneOut,
    LossGain,
    Measure,
    Shapley,
    contributions,
    get,
    weighted_mean,
)
from polyak.federated.ledger.errors import LedgerError, Refused, Tampered
from polyak.federated.ledger.exact import commitment, decimal_text, hash_tensors
from polyak.federated.ledger.ledger import Ledger, Verified, verify
from polyak.federated.ledger.replay import advance
from polyak.federated.ledger.reward import Reputation, RewardRule
from polyak.federated.ledger.shapley import shapley_values
from polyak.federated.ledger.terms import Entry, Member, State, Terms

__all__ = [
    "Alignment",
    "Contract",
    "DataSize",
    "Entry",
    "Head",
    "LeaveOneOut",
    "Ledger",
    "LedgerError",
    "LossGain",
    "Measure",
    "Member",
    "Refused",
    "Reputation",
    "RewardRule",
    "Shapley",
    "State",
    "Tampered",
    "Terms",
    "Verified",
    "advance",
    "commitment",
    "contributions",
    "decimal_text",
    "get",
    "hash_tensors",
    "shapley_values",
    "verify",
    "weighted_mean",
]
