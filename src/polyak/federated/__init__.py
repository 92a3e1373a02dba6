"""Floor 2: momentum over workers.

* :mod:`~polyak.federated.aggregators`: one vector made of those of several workers.
* :mod:`~polyak.federated.attacks`: what workers that lie send.
* :mod:`~polyak.federated.rules`: learning with a server, as functions of states and messages; :class:`InProcess` runs
  a rule with all clients on one machine.
* :mod:`~polyak.federated.privacy`: what a private rule has spent.
* :mod:`~polyak.federated.ledger`: what each agent contributed, what it is paid, and a ledger that anybody can verify.
* :class:`MoNNA`: momentum and nearest-neighbour averaging of peers, as pure functions; :class:`SimulatedPeers` runs all
  of them in one process, :class:`Peer` is one of a ``torch.distributed`` group, :class:`LyingPeer` one that lies.
* :mod:`polyak.federated.flower`: runs a rule in Flower; imported by that name alone.
"""

from polyak.federated import aggregators, attacks, ledger, privacy, rules
from polyak.federated.gradients import Batch, ModelGradient
from polyak.federated.in_process import InProcess, Round
from polyak.federated.monna import Bound, MoNNA, bound, draw_heard
from polyak.federated.peers import LyingPeer, Peer
from polyak.federated.simulated import SimulatedPeers

__all__ = [
    "Batch",
    "Bound",
    "InProcess",
    "LyingPeer",
    "MoNNA",
    "ModelGradient",
    "Peer",
    "Round",
    "SimulatedPeers",
    "aggregators",
    "attacks",
    "bound",
    "draw_heard",
    "ledger",
    "privacy",
    "rules",
]
