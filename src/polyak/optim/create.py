"""Pick a method by name: ``names``, ``get``, ``create``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from polyak.declare import Hyper
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.groups import Role, decay_groups
from polyak.optim.methods.adabelief import AdaBelief
from polyak.optim.methods.adamp import SGDP, AdamP
from polyak.optim.methods.adan import Adan
from polyak.optim.methods.ademamix import AdEMAMix
from polyak.optim.methods.cautious import CSGDM, CAdamW, CAdan, CLion
from polyak.optim.methods.classic import SGD, Adam, AdamW
from polyak.optim.methods.grams import Grams
from polyak.optim.methods.lion import Lion
from polyak.optim.methods.muon import Muon
from polyak.optim.methods.tam import TAM, AdaTAM, AdaTAMW

METHODS: dict[str, type[Optimizer]] = {
    method.slug: method
    for method in (
        SGD, Adam, AdamW, Adan, Lion, AdaBelief, AdEMAMix, AdamP, SGDP, CAdamW, CLion, CAdan, CSGDM, Grams, TAM,
        AdaTAM, AdaTAMW, Muon,
    )
}  # fmt: skip


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(METHODS)


def get(name: str) -> type[Optimizer]:
    """The class of a method.

    Raises:
        ValueError: if there is no such method; the nearest names are suggested.
    """
    found = METHODS.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), METHODS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names())}"
        raise ValueError(f"no method is named {name!r}{hint}")
    return found


def arguments(method: type[Optimizer]) -> dict[str, Hyper]:
    """The hyperparameters that a method's constructor takes, with default, range and meaning, in its order.

    An argument ``aux_x`` has the range of the option ``x`` that it fills in auxiliary groups.
    """
    declared = {h.name: h for h in method.hypers}
    found = {}
    for parameter in list(inspect.signature(method.__init__).parameters.values())[2:]:
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            name = parameter.name
            hyper = declared.get(name) or declared[name.removeprefix("aux_")]
            doc = hyper.doc if name in declared else f"{hyper.doc}, auxiliary groups"
            found[name] = replace(hyper, name=name, default=parameter.default, doc=doc)
    return found


def create(
    name: str,
    model_or_params: Any,
    *,
    weight_decay: float | None = None,
    no_decay_1d: bool = True,
    roles: Mapping[str, Role] | None = None,
    **hyperparameters: Any,
) -> Optimizer:
    """Build an optimizer by name, with sensible groups for a module.

    Args:
        name: one of :func:`names`.
        model_or_params: a module (groups are made: no decay on vectors, for matrix methods hidden matrices apart from
            embeddings, head and vectors), or what ``torch.optim`` takes (used as it is).
        weight_decay: for the decayed groups; None is the method's default.
        no_decay_1d: no decay on tensors with fewer than 2 dimensions. Only for a module.
        roles: role ("matrix", "vector", "embedding", "head") by parameter-name pattern. Only for a module.
        **hyperparameters: the method's, and ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an unknown name (the nearest are suggested), a value out of range, an unmatched pattern.
        TypeError: an unknown hyperparameter (the known ones are listed).
    """
    method = get(name)
    known = [*arguments(method), *EngineOptions.__annotations__]
    for given in hyperparameters:
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"{name} has no hyperparameter {given!r}{hint}; it has {known}")
    if not isinstance(model_or_params, nn.Module):
        if roles is not None:
            raise TypeError("roles= needs a module, whose parameters have names")
        if weight_decay is not None:
            hyperparameters["weight_decay"] = weight_decay
        return method(model_or_params, **hyperparameters)
    is_matrix_method = "aux_lr" in known
    groups = decay_groups(model_or_params, weight_decay, no_decay_1d, is_matrix_method, roles)
    return method(groups, **hyperparameters)
