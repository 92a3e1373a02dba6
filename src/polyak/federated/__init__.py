"""Floor 2: momentum over workers. Pure functions on tensors; no engine, no I/O, no randomness of its own.

* :mod:`~polyak.federated.aggregators`: one vector made of those of several workers.
"""

from polyak.federated import aggregators

__all__ = ["aggregators"]
