"""Pick a method by name: ``names``, ``families``, ``get``, ``create``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from polyak.declare import Hyper
from polyak.optim import layerwise, methods
from polyak.optim.groups import Role, decay_groups
from polyak.optim.layerwise import LayerMethod
from polyak.optim.method import Family, Method

METHODS: dict[str, type[Method]] = {cls.slug: cls for cls in (vars(methods)[name] for name in methods.__all__)}
LAYERED: dict[str, type[LayerMethod]] = {
    cls.slug: cls for cls in (vars(layerwise)[name] for name in layerwise.__all__) if cls.slug
}
"""Methods that need the model, since they read what flows through its layers."""
KNOWN: dict[str, type[Method]] = METHODS | LAYERED


def names(layered: bool = False) -> list[str]:
    """The names of all methods that take parameters, sorted; ``layered``: of those that must have the model."""
    return sorted(LAYERED if layered else METHODS)


def families() -> dict[str, list[str]]:
    """The names of all methods by family, sorted, in the order of :data:`polyak.optim.method.Family`."""
    found = {family: sorted(n for n, cls in KNOWN.items() if cls.family == family) for family in get_args(Family)}
    return {family: own for family, own in found.items() if own}


def get(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: if there is no such method; the nearest names are suggested.
    """
    found = KNOWN.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), KNOWN, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(KNOWN))}"
        raise ValueError(f"no method is named {name!r}{hint}")
    return found


def arguments(method: type[Method]) -> dict[str, Hyper]:
    """The hyperparameters that a method's constructor takes, by name, in its order."""
    return {h.name: h for h in method.arguments}


def create(
    name: str,
    model_or_params: Any,
    *,
    weight_decay: float | None = None,
    no_decay_1d: bool = True,
    roles: Mapping[str, Role] | None = None,
    **hyperparameters: Any,
) -> Method:
    """Build an optimizer by name, with sensible groups for a module.

    Args:
        name: one of :func:`names`.
        model_or_params: a module (groups are made: no decay on vectors, for matrix methods hidden matrices apart from
            embeddings, head and vectors), or what ``torch.optim`` takes (used as it is).
        weight_decay: for the decayed groups; None is the method's default. Of a matrix method's other groups
            ``aux_weight_decay``, where it is given.
        no_decay_1d: no decay on tensors with fewer than 2 dimensions. Only for a module.
        roles: role ("matrix", "vector", "embedding", "head") by parameter-name pattern. Only for a module.
        **hyperparameters: the method's, and ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an unknown name (the nearest are suggested), a value out of range, an unmatched pattern.
        TypeError: an unknown hyperparameter (the nearest is suggested).
    """
    return build(
        get(name), model_or_params, weight_decay=weight_decay, no_decay_1d=no_decay_1d, roles=roles, **hyperparameters
    )


def build(
    method: type[Method],
    model_or_params: Any,
    *,
    weight_decay: float | None = None,
    no_decay_1d: bool = True,
    roles: Mapping[str, Role] | None = None,
    **hyperparameters: Any,
) -> Method:
    """:func:`create` for a class, which need not be one of :func:`names`."""
    given = hyperparameters | ({} if weight_decay is None else {"weight_decay": weight_decay})
    if not isinstance(model_or_params, nn.Module):
        if roles is not None:
            raise TypeError("roles= needs a module, whose parameters have names")
        return method(model_or_params, **given)
    if issubclass(method, LayerMethod):
        return _layered(method, model_or_params, weight_decay, no_decay_1d, roles, given)
    auxiliary = next((given.get(h.name) for h in method.arguments if h.fills == "weight_decay"), None)
    groups = decay_groups(model_or_params, weight_decay, no_decay_1d, method.roles, roles, auxiliary)
    return method(groups, **given)


def _layered(
    method: type[LayerMethod],
    model: nn.Module,
    weight_decay: float | None,
    no_decay_1d: bool,
    roles: Mapping[str, Role] | None,
    given: dict[str, Any],
) -> LayerMethod:
    """A method that finds the layers itself, and their groups' roles with them."""
    if roles is not None:
        raise TypeError(f"{method.__name__} finds its layers itself: exclude= leaves some to the rule of other weights")
    return method(decay_groups(model, weight_decay, no_decay_1d), model=model, **given)
