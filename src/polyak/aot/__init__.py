"""Functions of tensors, compiled ahead of time and kept on disk.

    source = Source("double", double, (Array(torch.float32, ("n",)),), torch.device("cpu"), identity="double")
    kernel = load(source)        # compiled once on a machine; then loaded in milliseconds
    if kernel is not None and usable([x]):
        kernel.run([x])          # 2 microseconds around the work itself

Packages are in the user's cache folder (``POLYAK_CACHE`` moves it), and everything in it may be deleted at any time.
"""

from polyak.aot.kernel import Kernel
from polyak.aot.modes import PLAIN, usable
from polyak.aot.obtain import failed, load, prepare, unavailable
from polyak.aot.source import Array, Source

__all__ = ["PLAIN", "Array", "Kernel", "Source", "failed", "load", "prepare", "unavailable", "usable"]
