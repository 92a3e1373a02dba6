"""Floor 2: momentum over workers of torch.distributed, and over simulated ones.

* :class:`LocalUpdates`: any optimizer inside and any outside, with one exchange a period (DiLoCo, local SGD).
* :class:`MTDAO`: local steps with slow moments that are averaged, each with a period of its own.
* :class:`DelayedNesterov`: an outer optimizer for workers that arrive one at a time.
* :class:`MomentumHook`: momentum and compression before DistributedDataParallel averages.
* :class:`MASHA1`, :class:`MASHA2`: games over workers, each a process.
* :mod:`~polyak.distributed.simulation`: workers of many speeds on a simulated clock, in one process.
"""

from polyak.distributed.hooks import MomentumHook
from polyak.distributed.local_updates import LocalUpdates
from polyak.distributed.masha import MASHA1, MASHA2
from polyak.distributed.mt_dao import MTDAO
from polyak.optim import DelayedNesterov

__all__ = ["MASHA1", "MASHA2", "MTDAO", "DelayedNesterov", "LocalUpdates", "MomentumHook"]
