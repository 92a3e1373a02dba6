"""Reference vectors: build the optimizer that a vector's manifest describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from polyak.optim.create import get
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.groups import REST
from polyak.optim.methods.ano import Ano

HOW_IT_RAN = ("capturable", "differentiable", "foreach", "fused")
"""Hyperparameters of torch that choose a loop, and not what it computes."""


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
    mapping = _MAPPINGS.get(rule)
    if mapping is None or manifest.get("kind") not in (None, "trajectory"):
        raise KeyError(f"no method implements the rule {rule!r}")
    given = _Given(manifest)
    slug, fixed = mapping(given)
    arguments = given.arguments(slug, fixed)
    groups = _GROUPS[slug](manifest, named_params) if slug in _GROUPS else named_params.items()
    return get(slug)(groups, **arguments, **engine_options)


class _Given:
    """The hyperparameters of a manifest that nothing has read yet."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.name, self.rule = manifest.get("name", "the vector"), manifest["rule"]
        self.variant: str = manifest.get("variant") or "default"
        self.left = {k: _tupled(v) for k, v in manifest["hyperparameters"].items()}
        for name in HOW_IT_RAN:
            self.take(name, None, (None, False, True))

    def take(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """Read a hyperparameter that is no argument of ours."""
        value = self.left.pop(name, default)
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise ValueError(f"{self.name}: {name} = {value!r} is not reproduced, only {_listed(allowed)}")
        return value

    def rename(self, **names: str) -> None:
        """Read hyperparameters that are arguments of ours under another name."""
        for theirs, ours in names.items():
            if theirs in self.left:
                self.left[ours] = self.left.pop(theirs)

    def variant_of(self, *known: str) -> str:
        """The variant, which must be one of these."""
        if self.variant not in known:
            raise KeyError(f"no method implements the variant {self.variant!r} of {self.rule!r}, only {_listed(known)}")
        return self.variant

    def arguments(self, slug: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """What is left, all of it arguments of that method, beside what the rule and its variant fix."""
        known = {*inspect.signature(get(slug)).parameters, "maximize"} - {"params", "engine"}
        for name, value in self.left.items():
            if name not in known:
                raise ValueError(f"{self.name}: nothing in {slug} reads the hyperparameter {name} = {value!r}")
            if fixed.get(name, value) != value:
                raise ValueError(f"{self.name}: {name} = {value!r} is not reproduced, only {fixed[name]!r}")
        return {**self.left, **fixed}


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))


_Mapping = Callable[[_Given], tuple[str, dict[str, Any]]]


def _same(slug: str) -> _Mapping:
    """A rule whose source names all as we do."""
    return lambda given: (slug, {})


def _lion(given: _Given) -> tuple[str, dict[str, Any]]:
    given.rename(decoupled_weight_decay="decay_relative_to_initial_lr")
    return "lion", {}


def _clion(given: _Given) -> tuple[str, dict[str, Any]]:
    variant = given.variant_of("default", "mean", "factor")
    given.take("caution", True, (True,))
    if variant == "default":
        return "clion", {}
    if variant == "mean":
        return "clion", {"mask_scale": "mean"}
    given.rename(cautious_factor="opposed", decoupled_weight_decay="decay_relative_to_initial_lr")
    return "clion", {"mask_scale": "mean", "mask_floor": 1e-5}


def _cadamw(given: _Given) -> tuple[str, dict[str, Any]]:
    given.take("caution", True, (True,))
    return "cadamw", {"eps_form": "after" if given.variant_of("default", "epsafter") == "epsafter" else "before"}


def _cautious(given: _Given) -> tuple[str, dict[str, Any]]:
    given.take("caution", True, (True,))
    return given.variant_of("cadan", "csgdm"), {}


def _adabelief(given: _Given) -> tuple[str, dict[str, Any]]:
    decoupled = given.take("weight_decouple", True, (False, True))
    fixed = given.take("fixed_decay", False, (False, True))  # which the authors read with weight_decouple alone
    return "adabelief", {"decay_form": "coupled" if not decoupled else "fixed" if fixed else "decoupled"}


def _sgdp(given: _Given) -> tuple[str, dict[str, Any]]:
    return "sgdp", {"project_buffer": given.variant != "paper" and not given.left.get("nesterov", False)}


def _tam(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("card", "default")  # a peer's, which the vectors pin too, is not the paper's
    return given.rule, {}


def _ano(given: _Given) -> tuple[str, dict[str, Any]]:
    slug = given.variant_of("default", "anolog", "anosqrt", "anoall")
    if slug == "default":
        return "ano", {}
    # of the source's betas the first has no effect there, and should be what nobody has changed
    unread, given.left["beta2"] = given.left.pop("betas")
    if unread != Ano.betas[0]:
        raise ValueError(f"{given.name}: nothing in {slug} reads betas[0] = {unread!r}")
    return slug, {}


def _lars(given: _Given) -> tuple[str, dict[str, Any]]:
    if given.variant_of("default", "joint") == "joint":
        given.take("joint", True, (True,))
        return "lars", {"denominator": "joint"}
    _adapts(given)
    return "lars", {"exclude_1d": False, "lr_in_buffer": False}


def _lamb(given: _Given) -> tuple[str, dict[str, Any]]:
    if given.variant_of("default", "nvlamb") == "default":
        return "lamb", {}
    _adapts(given)
    given.take("grad_averaging", True, (True,))
    given.take("trust_clip", False, (False,))
    return "lamb", {"exclude_1d": False}


def _adapts(given: _Given) -> None:
    """Without decay timm has no trust ratio, unless told otherwise."""
    given.take("always_adapt", False, (False,))
    if not given.left.get("weight_decay", 0.0):
        raise ValueError(f"{given.name}: weight_decay = 0 without always_adapt is not reproduced")


def _sgd_sai(given: _Given) -> tuple[str, dict[str, Any]]:
    return "sgd_sai", {"strict": given.variant_of("default", "degenerate") == "degenerate"}


def _scale(given: _Given) -> tuple[str, dict[str, Any]]:
    given.rename(adam_lr="aux_lr", adamw_betas="aux_betas", adamw_eps="aux_eps", wd="weight_decay")
    return "scale", {"aux_weight_decay": given.left.get("weight_decay", 0.0)}


def _alr(given: _Given) -> tuple[str, dict[str, Any]]:
    variant = given.variant_of("hb", "shb", "nag", "smag")
    given.rename(beta="momentum")
    if variant not in ("hb", "shb"):
        return {"nag": "alr_nag", "smag": "alr_mag"}[variant], {}
    return "alr_hb", {"v2": given.take("factor", 1.0, (1.0, 2.0)) == 2.0}


def _am(given: _Given) -> tuple[str, dict[str, Any]]:
    """The vectors pin heights from before the paper's was known, and a weight that may be 1."""
    heights = ("aggregate", "anchored", "shared")
    variant = given.variant_of(*(f"{kind} {height}" for kind in ("am-sgd", "am-adamw") for height in heights))
    given.rename(offset="height")
    return variant.split()[0].replace("-", "_"), {"height": variant.split()[1], "bmax": 1.0}


def _spam(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("default", "density")
    return "spam", {}


def _stable_spam(given: _Given) -> tuple[str, dict[str, Any]]:
    given.rename(update_proj_gap="DeltaT")
    return "stable_spam", {"reset_at": "next"}


def _random_scaling(given: _Given) -> tuple[str, dict[str, Any]]:
    given.rename(beta="momentum", wd="weight_decay")
    base = given.variant_of("sgdm", "adamw", "o2nc-ogd").removeprefix("o2nc-")
    if base == "adamw":
        given.left["betas"] = (given.left.pop("b1"), given.left.pop("b2"))
    return "random_scaling", {"base": base}


def _m3(given: _Given) -> tuple[str, dict[str, Any]]:
    literal, average = "literal Algorithm 1 (sums, no decay), cubic Newton-Schulz", "ema with RMS cap"
    if given.variant_of(literal, average) == average:
        return "m3", {"variant": "ema"}
    given.rename(slow_chunk="frequency")
    given.left["betas"] = tuple(given.left.pop(f"beta{i}") for i in (1, 2, 3))
    given.left["ns_eps"] = given.left["eps"]
    return "m3", {"variant": "paper", "ns_coefficients": "cubic"}


def _nl_deep(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("row-wise MLP memory, tanh")
    return "nl_deep", {}


def _nl_delta(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("normalised keys")
    return "nl_delta", {}


def _gsm(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("default", "global top-|w*g|")
    return "gsm", {}


def _reality_check(given: _Given) -> tuple[str, dict[str, Any]]:
    return {"adamw": "adamw", "nesterov": "sgd"}[given.variant_of("adamw", "nesterov")], {}


def _muon(given: _Given) -> tuple[str, dict[str, Any]]:
    sources, precisions = (
        ("kellerjordan", "moonlight", "torch"),
        {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16},
    )
    source, precision = given.variant_of(*(f"{s}-{p}" for s in sources for p in precisions)).split("-")
    fixed = {"ns_dtype": precisions[precision], "conv_scale": "kernel"}
    given.rename(eps="ns_eps")
    if source == "torch":
        fn = given.take("adjust_lr_fn", None, (None, "original", "match_rms_adamw"))
        return "muon", fixed | {"ns_eps_form": "clamp", "adjust_lr": fn or "original"}
    if source == "moonlight":
        scale = given.take("adjust", "match_rms_adamw", ("match_rms_adamw",))
        # its heavy ball is 1 / (1 - momentum) times our average
        eps = given.left.pop("ns_eps", 1e-7) * (1 - given.left["momentum"])
        return "muon", fixed | {"aux_eps_form": "before", "adjust_lr": scale, "ns_eps": eps}
    return "muon", fixed


def _namo(given: _Given) -> tuple[str, dict[str, Any]]:
    exact = given.take("use_exact_svd", False, (False, True))
    variant = given.variant_of("newton-schulz float64", "newton-schulz official dtypes", "exact-svd float64")
    fixed = {
        "ns_coefficients": "svd" if exact else "original",
        "ns_dtype": torch.bfloat16 if "official" in variant else torch.float64,
        "aux_lr": given.left["lr"],
    }
    return given.rule.replace("-", "_"), fixed


def _auon(given: _Given) -> tuple[str, dict[str, Any]]:
    head, paper = "repository HEAD", "paper v1 / first released script, float64"
    variant = given.variant_of(head, f"HybridAuON {head}", paper)
    if variant.startswith("Hybrid"):
        return "hybrid_auon", {"ns_dtype": torch.float64}
    return "auon", {"variant": "paper", "gamma": 1.0} if variant == paper else {"variant": "head"}


def _auon_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """The head's steps all tensors, the paper's 2-d ones alone."""
    taken = [(n, p) for n, p in named_params.items() if p.ndim == 2 or not manifest["variant"].startswith("paper")]
    return [{"params": taken, "role": "matrix"}]


def _fismo(given: _Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("Algorithm 1")
    given.take("polar", "ns", ("ns",))
    return "fismo", {"ns_dtype": torch.float64}


def _only_matrices(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """What has fewer than 2 dimensions stays."""
    return [{"params": [(name, p) for name, p in named_params.items() if p.ndim >= 2], "role": "matrix"}]


def _matrix_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """All with at least 2 dimensions are matrices."""
    kinds: dict[str, list[tuple[str, Parameter]]] = {"matrix": [], REST: []}
    for name, p in named_params.items():
        kinds["matrix" if p.ndim >= 2 else REST].append((name, p))
    return [{"params": ps, "role": role} for role, ps in kinds.items() if ps]


def _muon_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """Keller Jordan's takes all matrices; Moonlight's and torch's only 2-d ones; torch's leaves the rest alone.

    Of tensors with 4 dimensions Keller Jordan's makes one matrix, of others with more than 2 a stack.
    """
    source = manifest["variant"].split("-")[0]
    only_2d = source != "kellerjordan"
    kinds: dict[tuple[bool, str], list[tuple[str, Parameter]]] = {}
    for name, p in named_params.items():
        muon = p.ndim == 2 if only_2d else p.ndim >= 2
        if muon or source != "torch":
            kinds.setdefault((muon, "batched" if muon and p.ndim not in (2, 4) else "flatten"), []).append((name, p))
    return [{"params": ps, "use_muon": muon, "conv_mode": mode} for (muon, mode), ps in kinds.items()]


def _scale_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """Its roles are named in the manifest."""
    roles = {"main": "matrix", "embed": "embedding", "last": "head", "vector": REST}
    kinds: dict[str, list[tuple[str, Parameter]]] = {}
    for name, p in named_params.items():
        kinds.setdefault(roles[manifest["roles"][name]], []).append((name, p))
    return [{"params": ps, "role": role} for role, ps in kinds.items()]


_GROUPS = {
    "muon": _muon_groups,
    "scale": _scale_groups,
    "namo": _matrix_groups,
    "namo_d": _matrix_groups,
    "auon": _auon_groups,
    "hybrid_auon": _auon_groups,
    "fismo": _only_matrices,
}

_MAPPINGS: dict[str, _Mapping] = {
    "sgd": _same("sgd"),
    "adam": _same("adam"),
    "adamw": _same("adamw"),
    "adan": _same("adan"),
    "lion": _lion,
    "adabelief": _adabelief,
    "ademamix": _same("ademamix"),
    "adamp": _same("adamp"),
    "sgdp": _sgdp,
    "cadamw": _cadamw,
    "clion": _clion,
    "cautious": _cautious,
    "grams": _same("grams"),
    "tam": _tam,
    "adatam": _tam,
    "adatamw": _tam,
    "muon": _muon,
    "namo": _namo,
    "namo-d": _namo,
    "auon": _auon,
    "fismo": _fismo,
    "ano": _ano,
    "lionk": _same("lionk"),
    "lars": _lars,
    "lamb": _lamb,
    "sgd-sai": _sgd_sai,
    "scale": _scale,
    "gsm": _gsm,
    "alphaadam": _same("alphaadam"),
    "alr": _alr,
    "am-momentum": _am,
    "momo": _same("momo"),
    "momo-adam": _same("momo_adam"),
    "m3": _m3,
    "nl-deep": _nl_deep,
    "nl-delta": _nl_delta,
    "reality-check": _reality_check,
    "smmf": _same("smmf"),
    "random-scaling": _random_scaling,
    "adaptive-braking": _same("adaptive_braking"),
    "spam": _spam,
    "stable-spam": _stable_spam,
}
