"""Which settings a method is tried with.

Trial 0 is the method's published defaults, for every method alike: it costs each the same one trial, and the report
can say what tuning gained over leaving everything as it is. The trials after it are Optuna's scrambled Sobol
sequence over the search space that the method declares. A trial depends on its number and the search space alone,
never on results or on how many trials there are, so ten trials are the first ten of twenty and nothing is repeated
when the budget grows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from polyak.declare import Choice, Range, SearchSpace
from polyak.lab.errors import require
from polyak.optim.create import arguments
from polyak.optim.method import Method

SEED = 0

Setting = dict[str, Any]


def settings(method: type[Method], trials: int) -> list[Setting]:
    """The hyperparameters of trials ``0 .. trials - 1`` of a method."""
    defaults = arguments(method)
    published = {name: defaults[name].default for name in method.search_space}
    return [published, *_sobol(method.search_space, trials - 1)]


def _sobol(space: SearchSpace, count: int) -> list[Setting]:
    if count == 0 or not space:
        return [{} for _ in range(count)]
    optuna = require("optuna")
    distributions = {name: _distribution(optuna, dimension) for name, dimension in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=SEED)
        study = optuna.create_study(sampler=sampler)
        # The sampler takes its dimensions from the first trial of a study, which it would draw at random itself.
        corner = {name: distribution.low for name, distribution in distributions.items()}
        study.add_trial(optuna.trial.create_trial(params=corner, distributions=distributions, value=0.0))
        drawn = [study.ask(distributions).params for _ in range(count)]
    return [_setting(space, params) for params in drawn]


def _distribution(optuna: Any, dimension: Range | Choice) -> Any:
    """A choice becomes the index of its value, so that it too is one dimension of the sequence."""
    if isinstance(dimension, Choice):
        return optuna.distributions.IntDistribution(0, len(dimension.values) - 1)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _setting(space: SearchSpace, params: Mapping[str, Any]) -> Setting:
    setting: Setting = {}
    for name, dimension in space.items():
        value = params[name]
        # Four digits are more than a search can tell apart, and can be read and typed again.
        setting[name] = dimension.values[value] if isinstance(dimension, Choice) else float(f"{value:.4g}")
    return setting
