"""Drivers: what wraps the whole step of any optimizer, polyak's or ``torch.optim``'s."""

from polyak.optim.drivers.delay import Delayed

__all__ = ["Delayed"]
