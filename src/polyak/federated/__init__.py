"""Floor 2: momentum over workers. Pure functions on tensors; no engine, no I/O, no randomness of its own.

* :mod:`~polyak.federated.aggregators`: one vector made of those of several workers.
* :mod:`~polyak.federated.rules`: learning with a server, as functions of states and messages.
* :mod:`~polyak.federated.privacy`: what a private rule has spent.
* :class:`InProcess`: runs a rule with all clients on one machine.
* :mod:`polyak.federated.flower`: runs a rule in Flower; imported by that name alone.
"""

from polyak.federated import aggregators, privacy, rules
from polyak.federated.gradients import Batch, ModelGradient
from polyak.federated.in_process import InProcess, Round

__all__ = ["Batch", "InProcess", "ModelGradient", "Round", "aggregators", "privacy", "rules"]
