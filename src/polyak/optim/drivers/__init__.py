"""Drivers: what wraps the whole step of any optimizer, polyak's or ``torch.optim``'s."""

from polyak.optim.drivers.cms import CMS
from polyak.optim.drivers.delay import Delayed
from polyak.optim.drivers.dgd import DGD
from polyak.optim.drivers.lora import LowRank, lora_layers
from polyak.optim.drivers.periodic_lora import PeriodicLoRA, unload
from polyak.optim.drivers.xgrad import XGrad

__all__ = ["CMS", "DGD", "Delayed", "LowRank", "PeriodicLoRA", "XGrad", "lora_layers", "unload"]
