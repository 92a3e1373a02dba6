"""What workers that lie send, for tests of aggregators and of what is built on them.

``get("alie")`` is the class :class:`ALIE`, ``ALIE(z=1.0)(honest, num_byzantine=2)`` the vectors of two liars.
"""

from polyak.federated._methods import by_name
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


def names() -> list[str]:
    """The names of all."""
    return sorted(kind.slug for kind in ALL)


def get(name: str) -> type[Attack]:
    """The class of a name.

    Raises:
        ValueError: a name that there is not; the nearest is named.
    """
    return by_name(name, ALL, "attack")
