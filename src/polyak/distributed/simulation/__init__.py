"""Workers of many speeds on one machine: a simulated clock, whose events run the same rules as real workers do.

* :class:`Server`: the weights and the outer optimizer, with every way in which an arrival enters (naive, buffered,
  delayed Nesterov, synchronous).
* :class:`Simulation`: a queue of finish times; no threads, no chance but that of a seed, resumable in mid-period.
* :class:`Shards`: shares of the data with counters and learning rates of their own; :func:`local_steps`: DyLU.
"""

from polyak.distributed.simulation.events import Arrival, Job, Simulation, local_steps
from polyak.distributed.simulation.server import Server, sync_weight
from polyak.distributed.simulation.shards import Shards

__all__ = ["Arrival", "Job", "Server", "Shards", "Simulation", "local_steps", "sync_weight"]
