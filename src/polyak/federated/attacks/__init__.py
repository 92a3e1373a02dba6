"""What workers that lie send, for tests of aggregators and of what is built on them.

``get("alie")`` is the class :class:`ALIE`, ``ALIE(z=1.0)(honest, num_byzantine=2)`` the vectors of two liars.
"""

from polyak.federated._methods import Listing
from polyak.federated.attacks.base import Attack, Memory
from polyak.federated.attacks.plain import Gaussian, LabelFlip, Mimic, MinMax, NotFinite, SignFlip, flipped
from polyak.federated.attacks.scaled import ALIE, FOE, Scaled, hidden_factor

__all__ = [
    "ALIE",
    "FOE",
    "Attack",
    "Gaussian",
    "LabelFlip",
    "Memory",
    "Mimic",
    "MinMax",
    "NotFinite",
    "Scaled",
    "SignFlip",
    "flipped",
    "get",
    "hidden_factor",
    "names",
]

ALL: tuple[type[Attack], ...] = (ALIE, FOE, SignFlip, Mimic, MinMax, LabelFlip, Gaussian, NotFinite)
_LISTING = Listing(ALL, "attack")
names, get = _LISTING.names, _LISTING.get
