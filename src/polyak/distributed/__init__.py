"""Floor 2: momentum over workers of torch.distributed, and over simulated ones.

* :class:`LocalUpdates`: any optimizer inside and any outside, with one exchange a period (DiLoCo, local SGD).
* :class:`MTDAO`: local steps with slow moments that are averaged, each with a period of its own.
* :class:`DelayedNesterov`: an outer optimizer for workers that arrive one at a time.
"""

from polyak.distributed.local_updates import LocalUpdates
from polyak.distributed.mt_dao import MTDAO
from polyak.optim import DelayedNesterov

__all__ = ["MTDAO", "DelayedNesterov", "LocalUpdates"]
