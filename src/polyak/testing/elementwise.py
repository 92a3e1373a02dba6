"""How recorded names of rules on elements meet ours: the method of a manifest, and what the rule fixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyak.optim.methods.ano import Ano
from polyak.testing.given import Given

Mapper = Callable[[Given], tuple[str, dict[str, Any]]]


def same(slug: str) -> Mapper:
    """A rule whose source names all as we do."""
    return lambda given: (slug, {})


def lion(given: Given) -> tuple[str, dict[str, Any]]:
    given.rename(decoupled_weight_decay="decay_relative_to_initial_lr")
    return "lion", {}


def mt_dao(given: Given) -> tuple[str, dict[str, Any]]:
    variant, _, more = given.variant.partition(",")
    if variant not in ("adam", "adopt", "sgdm") or "one worker" not in more:
        raise KeyError(f"no method implements the variant {given.variant!r} of {given.rule!r}")
    betas = (given.left.pop("beta"), given.left.pop("b2"))
    given.rename(w="weight")
    fixed = {"betas": betas, "variant": variant, "max_grad_norm": 0.0}
    return "mt_dao", {**fixed, "bias_correction": "bias_correction=True" in more}


def delayed_nesterov(given: Given) -> tuple[str, dict[str, Any]]:
    given.rename(beta="momentum", c="momentum_activation")
    return "delayed_nesterov", {}


def clion(given: Given) -> tuple[str, dict[str, Any]]:
    variant = given.variant_of("default", "mean", "factor")
    given.take("caution", True, (True,))
    if variant == "default":
        return "clion", {}
    if variant == "mean":
        return "clion", {"mask_scale": "mean"}
    given.rename(cautious_factor="opposed", decoupled_weight_decay="decay_relative_to_initial_lr")
    return "clion", {"mask_scale": "mean", "mask_floor": 1e-5}


def cadamw(given: Given) -> tuple[str, dict[str, Any]]:
    given.take("caution", True, (True,))
    return "cadamw", {"eps_form": "after" if given.variant_of("default", "epsafter") == "epsafter" else "before"}


def cautious(given: Given) -> tuple[str, dict[str, Any]]:
    given.take("caution", True, (True,))
    return given.variant_of("cadan", "csgdm"), {}


def adabelief(given: Given) -> tuple[str, dict[str, Any]]:
    decoupled = given.take("weight_decouple", True, (False, True))
    fixed = given.take("fixed_decay", False, (False, True))  # which the authors read with weight_decouple alone
    return "adabelief", {"decay_form": "coupled" if not decoupled else "fixed" if fixed else "decoupled"}


def sgdp(given: Given) -> tuple[str, dict[str, Any]]:
    return "sgdp", {"project_buffer": given.variant != "paper" and not given.left.get("nesterov", False)}


def tam(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("card", "default")  # a peer's, which the vectors pin too, is not the paper's
    return given.rule, {}


def ano(given: Given) -> tuple[str, dict[str, Any]]:
    slug = given.variant_of("default", "anolog", "anosqrt", "anoall")
    if slug == "default":
        return "ano", {}
    # of the source's betas the first has no effect there, and should be what nobody has changed
    unread, given.left["beta2"] = given.left.pop("betas")
    if unread != Ano.betas[0]:
        raise ValueError(f"{given.name}: nothing in {slug} reads betas[0] = {unread!r}")
    return slug, {}


def lars(given: Given) -> tuple[str, dict[str, Any]]:
    if given.variant_of("default", "joint") == "joint":
        given.take("joint", True, (True,))
        return "lars", {"denominator": "joint"}
    adapts(given)
    return "lars", {"exclude_1d": False, "lr_in_buffer": False}


def lamb(given: Given) -> tuple[str, dict[str, Any]]:
    if given.variant_of("default", "nvlamb") == "default":
        return "lamb", {}
    adapts(given)
    given.take("grad_averaging", True, (True,))
    given.take("trust_clip", False, (False,))
    return "lamb", {"exclude_1d": False}


def adapts(given: Given) -> None:
    """Without decay timm has no trust ratio, unless told otherwise."""
    given.take("always_adapt", False, (False,))
    if not given.left.get("weight_decay", 0.0):
        raise ValueError(f"{given.name}: weight_decay = 0 without always_adapt is not reproduced")


def sgd_sai(given: Given) -> tuple[str, dict[str, Any]]:
    return "sgd_sai", {"strict": given.variant_of("default", "degenerate") == "degenerate"}


def alr(given: Given) -> tuple[str, dict[str, Any]]:
    variant = given.variant_of("hb", "shb", "nag", "smag")
    given.rename(beta="momentum")
    if variant not in ("hb", "shb"):
        return {"nag": "alr_nag", "smag": "alr_mag"}[variant], {}
    return "alr_hb", {"v2": given.take("factor", 1.0, (1.0, 2.0)) == 2.0}


def am(given: Given) -> tuple[str, dict[str, Any]]:
    """The vectors pin heights from before the paper's was known, and a weight that may be 1."""
    heights = ("aggregate", "anchored", "shared")
    variant = given.variant_of(*(f"{kind} {height}" for kind in ("am-sgd", "am-adamw") for height in heights))
    given.rename(offset="height")
    return variant.split()[0].replace("-", "_"), {"height": variant.split()[1], "bmax": 1.0}


def spam(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("default", "density")
    return "spam", {}


def stable_spam(given: Given) -> tuple[str, dict[str, Any]]:
    given.rename(update_proj_gap="DeltaT")
    return "stable_spam", {"reset_at": "next"}


def random_scaling(given: Given) -> tuple[str, dict[str, Any]]:
    given.rename(beta="momentum", wd="weight_decay")
    base = given.variant_of("sgdm", "adamw", "o2nc-ogd").removeprefix("o2nc-")
    if base == "adamw":
        given.left["betas"] = (given.left.pop("b1"), given.left.pop("b2"))
    return "random_scaling", {"base": base}


def nl_deep(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("row-wise MLP memory, tanh")
    return "nl_deep", {}


def nl_delta(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("normalised keys")
    return "nl_delta", {}


def gsm(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("default", "global top-|w*g|")
    return "gsm", {}


def reality_check(given: Given) -> tuple[str, dict[str, Any]]:
    return {"adamw": "adamw", "nesterov": "sgd"}[given.variant_of("adamw", "nesterov")], {}
