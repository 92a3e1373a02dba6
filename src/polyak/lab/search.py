"""Which settings a method is tried with.

Points of SciPy's scrambled Sobol sequence, spread over the search space that the method declares. A trial depends on
its number, the space and the search's seed alone, never on results, on how many trials there are or on when a worker
was free. So ten trials are the first ten of twenty, a stopped comparison goes on as if it had never stopped, methods
are treated alike, and how much tuning itself varies can be computed from the trials. A sampler that learns from
results (Optuna's TPE) gives all of that up for a gain that shows beyond the some ten trials a method gets here; a
dependency for its Sobol sampler alone would be one too many.

Trial 0 is the method's published defaults, where they are a setting that its own search space offers: then they cost
every method the same one trial, and the report can say what tuning gained. Defaults outside the space (the learning
rate 0.001 and momentum 0 of ``torch.optim.SGD``) are there to be replaced, and get no trial. Zero counts as offered by
a logarithmic range, which cannot hold it: it means "off", most often no weight decay. Where that is the default, a
fifth of the trials have it, each at another value of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyak.declare import Choice, Range, SearchSpace
from polyak.lab.errors import require
from polyak.lab.values import is_number

OFF_SHARE = 0.2

Setting = dict[str, Any]


def settings(space: SearchSpace, defaults: Mapping[str, Any], trials: int, tuning_seed: int = 0) -> list[Setting]:
    """The hyperparameters of trials ``0 .. trials - 1``.

    Args:
        space: where to look.
        defaults: the published values, as far as there are any.
        trials: how many settings are wanted.
        tuning_seed: another seed gives other trials (but for the defaults).
    """
    if not space:
        return [{} for _ in range(trials)]
    published = published_setting(space, defaults)
    first = [] if published is None else [published]
    points = _sobol(len(space), trials - len(first), tuning_seed)
    off = {name for name, one in space.items() if _is_zero(defaults.get(name)) and isinstance(one, Range) and one.log}
    drawn = [
        {name: _at(u, one, name in off) for (name, one), u in zip(space.items(), point, strict=True)}
        for point in points
    ]
    return [*first, *drawn][:trials]


def published_setting(space: SearchSpace, defaults: Mapping[str, Any]) -> Setting | None:
    """The published defaults of what is searched, or ``None`` where the space does not offer them."""
    if not all(name in defaults and _offers(one, defaults[name]) for name, one in space.items()):
        return None
    return {name: defaults[name] for name in space}


def _is_zero(value: Any) -> bool:
    return is_number(value) and value == 0


def _offers(one: Range | Choice, value: Any) -> bool:
    if isinstance(one, Choice):
        return value in one.values
    if not is_number(value):
        return False
    return one.low <= value <= one.high or (one.log and value == 0)


def _sobol(dimensions: int, count: int, seed: int) -> list[list[float]]:
    if count < 1:
        return []
    qmc = require("scipy.stats.qmc")
    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    points: list[list[float]] = sequence.random_base2((count - 1).bit_length()).tolist()
    return points[:count]


def _at(u: float, one: Range | Choice, may_be_off: bool) -> Any:
    if isinstance(one, Choice):
        return one.values[int(u * len(one.values))]
    if may_be_off:
        if u < OFF_SHARE:
            return 0.0
        u = (u - OFF_SHARE) / (1 - OFF_SHARE)
    value = one.low * (one.high / one.low) ** u if one.log else one.low + (one.high - one.low) * u
    # Four digits are more than a search can tell apart, and can be read and typed again.
    return min(max(float(f"{value:.4g}"), one.low), one.high)
