"""Drivers: what wraps the whole step of any optimizer, polyak's or ``torch.optim``'s."""

from polyak.optim.drivers.lora import LowRank, lora_layers
from polyak.optim.drivers.periodic_lora import PeriodicLoRA, unload

__all__ = ["LowRank", "PeriodicLoRA", "lora_layers", "unload"]
