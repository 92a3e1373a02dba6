"""The rules in Flower: each as a ``Strategy`` of its message API, and a client that keeps its state between rounds.

Needs Flower: ``pip install "polyak[federated]"``.

* :class:`Strategy`: the server's part of any rule.
* :class:`Client`: a node's part.
* :class:`Unusable`: what is wrong with a record that was received.
"""

try:
    import flwr as _flwr  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "flwr":
        raise
    raise ModuleNotFoundError(
        'polyak.federated.flower needs flwr: pip install "polyak[federated]"', name="flwr"
    ) from missing

from polyak.federated.flower.client import Client
from polyak.federated.flower.records import Unusable
from polyak.federated.flower.strategy import Strategy

__all__ = ["Client", "Strategy", "Unusable"]
