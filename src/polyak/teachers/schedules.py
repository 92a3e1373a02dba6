r"""How fast an average forgets, as objects: the functions of :mod:`polyak.memory.schedules` with their arguments.

A schedule is a frozen dataclass whose :meth:`Schedule.beta` is a pure function of counts, so that nothing but the
counts has to be stored to go on exactly where a run stopped. Write one of your own by deriving a frozen dataclass
from :class:`Schedule`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from polyak.memory import (
    constant_beta,
    cosine_beta,
    debias,
    gamma_of_sigma_rel,
    half_life_beta,
    power_beta,
    ramp_beta,
    sigma_rel_of_gamma,
    uniform_beta,
    warmup_beta,
)
from polyak.memory._check import require


@dataclass(frozen=True)
class Schedule(ABC):
    r"""Weight :math:`\beta` that the past has in :math:`e \leftarrow \beta e + (1-\beta)\,\theta`."""

    in_samples: ClassVar[bool] = False
    """Whether ``step`` and ``delta`` count the samples that ``update()`` is told of, and not its calls."""

    @abstractmethod
    def beta(self, step: int, update: int, delta: int) -> float:
        """The weight of the past in one update, in [0, 1]; 0 copies and 1 leaves the average.

        Args:
            step: calls of ``update()`` so far, this one included, >= 1; samples where :attr:`in_samples`.
            update: how many calls moved the average, this one included, in 1..step; fewer than all with
                ``update_every`` above 1.
            delta: calls, or samples, since the average last moved, >= 1.
        """

    def __post_init__(self) -> None:
        self.beta(1, 1, 1)  # the functions of memory check the arguments

    def describe(self) -> dict[str, Any]:
        """Name and arguments, as they stand in a checkpoint."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    r"""The same at every update: :math:`\beta_t = \beta` (MoCo, BYOL, ALBEF; torch's ``AveragedModel``).

    Args:
        decay: :math:`\beta`, in [0, 1].

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    decay: float = 0.9999

    def beta(self, step: int, update: int, delta: int) -> float:
        return constant_beta(step, self.decay)


@dataclass(frozen=True)
class Uniform(Schedule):
    r"""Plain mean of the weights at the updates: :math:`\beta_n = 1 - 1/n` (Polyak and Juditsky, 1992; SWA).

    :math:`n` counts the updates that moved the average, so it is a mean with ``update_every`` too.
    """

    def beta(self, step: int, update: int, delta: int) -> float:
        return uniform_beta(update)


@dataclass(frozen=True)
class Debiased(Schedule):
    r"""Average begun at zero and read without its bias: :math:`e_n/(1-\beta^n)` with :math:`e_0 = 0`.

    The correction of Adam (arXiv:1412.6980). What is kept is what would be read, which moves with
    :math:`\beta_n = \beta\,(1-\beta^{n-1})/(1-\beta^n)`: the first update copies, the next ones are nearly a mean.
    :math:`n` counts the updates that moved the average. For evaluation: a teacher (``start="teacher"``) does not begin
    at zero, and is refused.

    Args:
        decay: :math:`\beta`, in [0, 1).

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        require(0.0 <= self.decay < 1.0, "decay", self.decay, "in [0, 1)")
        super().__post_init__()

    def beta(self, step: int, update: int, delta: int) -> float:
        return 0.0 if update == 1 else self.decay * debias(self.decay, update - 1) / debias(self.decay, update)


@dataclass(frozen=True)
class Warmup(Schedule):
    r"""Power-law warm-up of timm, diffusers (``use_ema_warmup``) and ema-pytorch.

    With :math:`s = t - \text{update\_after\_step} - 1`:
    :math:`\beta_t = \mathrm{clip}(1 - (1 + s/\gamma)^{-p}, \text{min\_decay}, \text{decay})`, a copy while
    :math:`s \le 0`.

    Args:
        decay: the final weight of the past, in [0, 1].
        power: :math:`p`, at least 0.
        inv_gamma: :math:`\gamma`, greater than 0.
        update_after_step: number of further updates that copy, at least 0.
        min_decay: lower bound once the warm-up has begun, in [0, decay].

    Raises:
        ValueError: if an argument is out of range.
    """

    decay: float = 0.9999
    power: float = 2.0 / 3.0
    inv_gamma: float = 1.0
    update_after_step: int = 0
    min_decay: float = 0.0

    def beta(self, step: int, update: int, delta: int) -> float:
        return warmup_beta(step, self.decay, self.power, self.inv_gamma, self.update_after_step, self.min_decay)


@dataclass(frozen=True)
class Ramp(Schedule):
    r"""Ramp of diffusers' default EMA: :math:`\beta_t = \min((1+s)/(10+s), \text{decay})`.

    A copy while :math:`s \le 0`.

    Args:
        decay: the final weight of the past, in [0, 1].
        update_after_step: number of further updates that copy, at least 0; :math:`s` counts from there.
        min_decay: lower bound once the ramp has begun, in [0, decay].

    Raises:
        ValueError: if an argument is out of range.
    """

    decay: float = 0.9999
    update_after_step: int = 0
    min_decay: float = 0.0

    def beta(self, step: int, update: int, delta: int) -> float:
        return ramp_beta(step, self.decay, self.update_after_step, self.min_decay)


@dataclass(frozen=True)
class HalfLife(Schedule):
    r"""Half-life with a ramp-up, as in EDM (arXiv:2206.00364): :math:`\beta_t = 2^{-a/\min(h,\,r t)}`.

    :math:`t` is the progress including the update and :math:`a` that since the last one. So it is in EDM2's code
    (``TraditionalEMA``); EDM's moves the average before it counts the batch, so its ramp is one batch behind.

    Args:
        half_life: :math:`h`, greater than 0, in calls of ``update()``, or in samples where these are told the batch
            size or ``per_step`` is it.
        rampup_ratio: :math:`r`, greater than 0, or ``None`` for no ramp-up. EDM uses 0.05, EDM2 0.09.
        per_step: progress of one call, or sample, in the unit of ``half_life``, greater than 0.

    Raises:
        ValueError: if an argument is out of range.
    """

    half_life: float
    rampup_ratio: float | None = 0.05
    per_step: float = 1.0
    in_samples: ClassVar[bool] = True

    def beta(self, step: int, update: int, delta: int) -> float:
        return half_life_beta(step * self.per_step, self.half_life, delta * self.per_step, self.rampup_ratio)


@dataclass(frozen=True)
class Power(Schedule):
    r"""Power-function average of EDM2 (arXiv:2312.02696): :math:`\beta_t = (1 - \delta/t)^{\gamma+1}`.

    Weights seen at :math:`\tau` count in proportion to :math:`\tau^\gamma`; :math:`\delta` is the distance of the
    updates, in calls of ``update()``, or in samples where these are told the batch size, as EDM2 does. Averages of
    other widths can be rebuilt afterwards with :func:`polyak.teachers.reconstruct`. ema-pytorch leaves :math:`\delta`
    out, so that its average is too long where it does not update at every step.

    Args:
        sigma_rel: relative width, in (0, 0.2887]; 0.05 and 0.10 are EDM2's pair. Give this or ``gamma``.
        gamma: exponent, greater than -1; 0 is the plain mean.

    Raises:
        ValueError: if an argument is out of range, or not exactly one is given.
    """

    sigma_rel: float | None = None
    gamma: float | None = None
    in_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.sigma_rel is None) == (self.gamma is None):
            raise ValueError(
                f"give sigma_rel or gamma, and not both, got sigma_rel={self.sigma_rel!r}, gamma={self.gamma!r}"
            )
        if self.gamma is None and self.sigma_rel is not None:
            object.__setattr__(self, "gamma", gamma_of_sigma_rel(self.sigma_rel))
        elif self.gamma is not None:
            object.__setattr__(self, "sigma_rel", sigma_rel_of_gamma(self.gamma))

    def beta(self, step: int, update: int, delta: int) -> float:
        assert self.gamma is not None
        return power_beta(step, self.gamma, delta)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine from ``start`` to ``end`` (BYOL, DINO): :math:`\beta_k = e + (s-e)(1+\cos(\pi k/n))/2`.

    :math:`k = t - 1` counts from 0. A run longer than ``steps`` stays at ``end``, with a warning.

    Args:
        steps: :math:`n`, number of updates of the run, at least 1.
        start: :math:`s`, in [0, 1].
        end: :math:`e`, in [0, 1]. DINO's schedule never quite reaches it.
        closed: divide by :math:`n - 1` as lightly does, so that the last update has exactly ``end``.

    Raises:
        ValueError: if an argument is out of range.
    """

    steps: int
    start: float = 0.996
    end: float = 1.0
    closed: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        super().__post_init__()

    def beta(self, step: int, update: int, delta: int) -> float:
        if step == self.steps + 1:  # at one step only, so once a run
            warnings.warn(f"the run is longer than {self}; from here on beta is {self.end}", RuntimeWarning, 2)
        return cosine_beta(step - 1, self.steps, self.start, self.end, self.closed)


def as_schedule(value: float | Schedule) -> Schedule:
    """A schedule as it is; a number as :class:`Constant`.

    Raises:
        ValueError: if a number is outside [0, 1].
        TypeError: if it is neither.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Constant(float(value))
    raise TypeError(f"schedule must be a number in [0, 1] or a polyak.teachers.Schedule, got {value!r}")
