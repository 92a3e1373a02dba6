"""Reference vectors: build the optimizer that a vector's manifest describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Parameter

from polyak.optim.create import get
from polyak.optim.engine.optimizer import Optimizer
from polyak.testing import elementwise, matrices
from polyak.testing.given import HOW_IT_RAN, Given

__all__ = ["HOW_IT_RAN", "RULES", "from_manifest"]

GROUPS = {
    "muon": matrices.muon_groups,
    "scale": matrices.scale_groups,
    "namo": matrices.matrix_groups,
    "namo_d": matrices.matrix_groups,
    "auon": matrices.auon_groups,
    "hybrid_auon": matrices.auon_groups,
    "fismo": matrices.only_matrices,
}

MAPPERS: dict[str, elementwise.Mapper] = {
    "sgd": elementwise.same("sgd"),
    "adam": elementwise.same("adam"),
    "adamw": elementwise.same("adamw"),
    "adan": elementwise.same("adan"),
    "lion": elementwise.lion,
    "adabelief": elementwise.adabelief,
    "ademamix": elementwise.same("ademamix"),
    "adamp": elementwise.same("adamp"),
    "sgdp": elementwise.sgdp,
    "cadamw": elementwise.cadamw,
    "clion": elementwise.clion,
    "cautious": elementwise.cautious,
    "grams": elementwise.same("grams"),
    "tam": elementwise.tam,
    "adatam": elementwise.tam,
    "adatamw": elementwise.tam,
    "muon": matrices.muon,
    "namo": matrices.namo,
    "namo-d": matrices.namo,
    "auon": matrices.auon,
    "fismo": matrices.fismo,
    "ano": elementwise.ano,
    "lionk": elementwise.same("lionk"),
    "lars": elementwise.lars,
    "lamb": elementwise.lamb,
    "sgd-sai": elementwise.sgd_sai,
    "scale": matrices.scale,
    "gsm": elementwise.gsm,
    "alphaadam": elementwise.same("alphaadam"),
    "alr": elementwise.alr,
    "am-momentum": elementwise.am,
    "momo": elementwise.same("momo"),
    "momo-adam": elementwise.same("momo_adam"),
    "m3": matrices.m3,
    "nl-deep": elementwise.nl_deep,
    "nl-delta": elementwise.nl_delta,
    "reality-check": elementwise.reality_check,
    "smmf": elementwise.same("smmf"),
    "random-scaling": elementwise.random_scaling,
    "adaptive-braking": elementwise.same("adaptive_braking"),
    "delayed-nesterov": elementwise.delayed_nesterov,
    "mt-dao": elementwise.mt_dao,
    "diloco-outer": elementwise.same("sgd"),
    "spam": elementwise.spam,
    "stable-spam": elementwise.stable_spam,
}

RULES = tuple(MAPPERS)
"""The recorded rules that a method here implements."""


def from_manifest(manifest: Mapping[str, Any], named_params: dict[str, Parameter], **engine_options: Any) -> Optimizer:
    """The optimizer of a reference vector.

    Names of arguments in manifests follow the source that was run; here is the one place that translates them. Every
    hyperparameter is either given to the method or refused.

    Args:
        manifest: a vector's JSON: ``rule``, ``variant`` and ``hyperparameters`` are read.
        named_params: the vector's tensors by name.
        **engine_options: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        KeyError: if no method implements the manifest's rule, or its variant; names it.
        ValueError: if nothing reads a hyperparameter, or its value is not reproduced; names both.
    """
    rule = manifest["rule"]
    mapping = MAPPERS.get(rule)
    if mapping is None or manifest.get("kind") not in (None, "trajectory"):
        raise KeyError(f"no method implements the rule {rule!r}")
    given = Given(manifest)
    slug, fixed = mapping(given)
    arguments = given.arguments(slug, fixed)
    groups = GROUPS[slug](manifest, named_params) if slug in GROUPS else named_params.items()
    return get(slug)(groups, **arguments, **engine_options)
