"""What a train function may say to ``make_optimizer`` beside the hyperparameters of its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from polyak.lab.errors import BadInput


def checked(method: str, setting: Mapping[str, Any], model_or_params: Any, fixed: Mapping[str, Any]) -> Any:
    """The module or the parameters, an iterator as a list; refuses what would take the place of the trial's values.

    A group may switch an argument off with 0, as one of norms and biases does with its weight decay, as long as
    another group has the trial's value.
    """
    clash = sorted(fixed.keys() & setting.keys())
    if clash:
        names = ", ".join(f"{name}={fixed[name]!r}" for name in clash)
        raise BadInput(f"make_optimizer({names}): these are set for {method}; leave them out here")
    if isinstance(model_or_params, (nn.Module, Tensor)):
        return model_or_params
    params = list(model_or_params)
    groups = [entry for entry in params if isinstance(entry, Mapping)]
    for place, group in enumerate(groups):
        for name in group.keys() & setting.keys():
            is_off = _is_zero(group[name]) and any(name not in other for other in groups)
            if not is_off:
                raise BadInput(
                    f"make_optimizer: group {place} has {name}={group[name]!r}, which is set for {method}; leave it "
                    f"out, and scale afterwards: optimizer.param_groups[{place}][{name!r}] *= 0.1"
                )
    return params


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0
