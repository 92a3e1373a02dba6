"""Floor 2: momentum over workers. Pure functions on tensors; no engine, no I/O, no randomness of its own.

* :mod:`~polyak.federated.aggregators`: one vector made of those of several workers.
* :mod:`~polyak.federated.attacks`: what workers that lie send.
"""

from polyak.federated import aggregators, attacks

__all__ = ["aggregators", "attacks"]
