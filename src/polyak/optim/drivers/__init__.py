"""Drivers: what wraps the whole step of any optimizer, polyak's or ``torch.optim``'s."""

from polyak.optim.drivers.periodic_lora import LowRank, PeriodicLoRA, lora_layers, unload

__all__ = ["LowRank", "PeriodicLoRA", "lora_layers", "unload"]
