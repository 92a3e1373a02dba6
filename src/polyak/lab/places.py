"""Where the runs of a comparison are made, and how many at a time."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass

import torch

from polyak.lab.campaign import Campaign
from polyak.lab.carried import SUFFIX
from polyak.lab.errors import BadInput, suggestion
from polyak.lab.values import is_number

ENGINES = ("processes", "ray")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Places:
    """Where runs are made.

    Args:
        workers: how many runs are made at a time; by default one on each device, without devices one for each core.
        timeout: the seconds after which a run is ended; None waits for ever.
        devices: what runs are made on, ``"cpu"`` or some of ``"cuda:0"``, ``"cuda:1"`` and so on. A worker sees its
            device alone, so that ``"cuda"`` means that one to a training script, and a declared problem is put there.
            Empty leaves that to the problems. With ray, ``"cuda"`` asks for a GPU for each run.
        engine: ``"processes"`` of this machine, or ``"ray"`` for tasks of a Ray cluster.
        address: of the Ray cluster, ``"HOST:PORT"`` or ``"auto"``, which is what None stands for.

    Raises:
        BadInput: where one of them cannot be.
    """

    workers: int | None = None
    timeout: float | None = None
    devices: tuple[str, ...] = ()
    engine: str = "processes"
    address: str | None = None

    def __post_init__(self) -> None:
        workers, timeout = self.workers, self.timeout
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise BadInput(f"workers must be at least 1, got {workers!r}")
        if timeout is not None and not (is_number(timeout) and 0 < timeout < math.inf):
            raise BadInput(f"timeout must be a number of seconds above 0, got {timeout!r}")
        if self.engine not in ENGINES:
            raise BadInput(f"unknown engine {self.engine!r}; {suggestion(str(self.engine), ENGINES)}")
        self._check_address()
        _check_devices(self.devices) if self.engine == "processes" else self._check_devices_of_ray()

    def _check_address(self) -> None:
        if self.address is None:
            return
        if self.engine != "ray":
            raise BadInput(f"the address {self.address!r} is that of a Ray cluster; add engine 'ray' or leave it out")
        if not isinstance(self.address, str) or not re.fullmatch(r"auto|\S+:\d+", self.address):
            raise BadInput(f"address must be auto or HOST:PORT, got {self.address!r}")

    def _check_devices_of_ray(self) -> None:
        if self.devices not in ((), ("cpu",), ("cuda",)):
            raise BadInput(f"Ray places the runs itself: devices must be cuda or cpu, got {','.join(self.devices)!r}")

    @property
    def size(self) -> int:
        """How many runs are made at a time by the workers of this machine."""
        return self.workers or len(self.devices) or os.cpu_count() or 1

    @property
    def first(self) -> str:
        """The first device; empty where problems choose."""
        return self.devices[0] if self.devices else ""

    def check(self, campaign: Campaign) -> None:
        """Refuse what nobody could keep to for the problems of a comparison."""
        given = {"timeout": self.timeout is not None, "devices": bool(self.devices), "engine": self.engine == "ray"}
        named = [name for name, is_given in given.items() if is_given]
        if named and any(loaded.is_here for loaded in campaign.problems):
            raise BadInput(f"{named[0]} needs a process of its own; give the function that returns the Problem instead")
        if self.engine == "ray" and any(loaded.reference.endswith(SUFFIX) for loaded in campaign.problems):
            raise BadInput("Ray's nodes do not see a notebook; write its problem to a file and name path.py:function")


def kind(device: str) -> str:
    """What a worker calls its device, which is the only one that it sees: "cuda" or "cpu"."""
    return device.partition(":")[0]


def environment(device: str) -> dict[str, str]:
    """What the environment of a worker has to say, so that it sees its device alone."""
    name, _, index = device.partition(":")
    if name == "cpu":
        return {VISIBLE: ""}
    if not index:
        return {}
    visible = os.environ.get(VISIBLE)  # to this process, which counts only those
    return {VISIBLE: visible.split(",")[int(index)].strip() if visible else index}


def _check_devices(devices: tuple[str, ...]) -> None:
    for device in devices:
        if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda:\d+", device):
            raise BadInput(f"a device is cpu, cuda:0, cuda:1 and so on, got {device!r}")
    twice = [device for device, count in Counter(devices).items() if count > 1]
    if twice:
        raise BadInput(f"the device {twice[0]!r} is named twice; workers says how many runs share it")
    if len({kind(device) for device in devices}) > 1:
        raise BadInput(f"devices {','.join(devices)} are of two kinds, which give other figures; name those of one")
    wanted = [device for device in devices if device != "cpu"]
    count = torch.cuda.device_count() if wanted and torch.cuda.is_available() else 0
    for device in wanted:
        if int(device.partition(":")[2]) >= count:
            there = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0" if count else "cpu alone, there is no CUDA"
            raise BadInput(f"there is no device {device!r}; this machine has {there}")
