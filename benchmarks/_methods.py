"""Options with which every method is timed, the peers that have it, and what it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from polyak import optim
from polyak.optim.engine.context import outside

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
ADAN = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 1e-2}
BALL = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}
BELIEF = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 1e-2, "rectify": True}
LION = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-2}
MIX = {"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 2.0, "eps": 1e-8, "weight_decay": 1e-2}
MATRIX = {"lr": 2e-2, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 1e-2}
REST = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
HEAVY_BALL = {"lr": 1e-2, "beta": 0.9, "weight_decay": 1e-2}
NESTEROV = {**BALL, "nesterov": True}
LAMB = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-2}
LARS = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4, "trust_coeff": 1e-3}
ANO = {"lr": 1e-4, "betas": (0.92, 0.99), "eps": 1e-8, "weight_decay": 1e-2}
SAI = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2, "eps": 1e-8}
STABLE = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
DION = {"lr": 2e-2, "mu": 0.95, "weight_decay": 1e-2, "nesterov": True, "flatten": True}
DION_STEPS = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)  # fmt: skip
DION |= {"use_polar_express": False, "adjust_lr": "rms_norm"}
EIGHT_BITS = {"int8": {"state_storage": "int8"}}


@dataclass(frozen=True)
class Peer:
    """A class of another library, its options, and the name of polyak's variant that stores as it does."""

    library: str
    name: str
    options: Mapping[str, Any]
    beside: str = ""


@dataclass(frozen=True)
class Method:
    """polyak's options for a method, the peers that have it, and polyak once more with other options."""

    options: Mapping[str, Any]
    peers: tuple[Peer, ...] = ()
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _torch(name: str, options: Mapping[str, Any]) -> Peer:
    return Peer("torch.optim", name, options)


def _timm(name: str, options: Mapping[str, Any], caution: bool = False) -> Peer:
    return Peer("timm", name, {**options, "caution": True} if caution else options)


def _po(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("pytorch_optimizer", name, {**options, **more})


def _heavy(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("heavyball", name, {**options, **more})


def _optimi(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("optimi", name, {**options, **more})


def _torchao(name: str, options: Mapping[str, Any]) -> Peer:
    return Peer("torchao.optim", name, options, "int8")


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


# A method that is not listed here runs alone, with its defaults. The TAM of pytorch_optimizer is another rule.
METHODS: dict[str, Method] = {
    "sgd": Method(BALL, (_torch("SGD", BALL), _optimi("SGD", BALL, torch_init=True))),
    "adam": Method(ADAM, (_torch("Adam", ADAM), _optimi("Adam", ADAM), _torchao("Adam8bit", ADAM)), EIGHT_BITS),
    "adamw": Method(
        ADAM,
        (
            _torch("AdamW", ADAM),
            _timm("AdamWLegacy", ADAM),
            _optimi("AdamW", ADAM),
            _torchao("AdamW8bit", ADAM),
            _heavy("AdamW", ADAM),
        ),
        EIGHT_BITS,
    ),
    "adan": Method(ADAN, (_po("Adan", ADAN), _timm("Adan", ADAN), _optimi("Adan", ADAN))),
    "lion": Method(LION, (_po("Lion", LION), _timm("Lion", LION), _optimi("Lion", LION))),
    "adabelief": Method(BELIEF, (_po("AdaBelief", BELIEF), _timm("AdaBelief", BELIEF))),
    "ademamix": Method(MIX, (_po("AdEMAMix", MIX, weight_decouple=True), _heavy("AdEMAMix", MIX))),
    "adamp": Method(ADAM, (_po("AdamP", ADAM), _timm("AdamP", ADAM))),
    "sgdp": Method(NESTEROV, (_po("SGDP", NESTEROV), _timm("SGDP", NESTEROV))),
    "cadamw": Method(ADAM, (_timm("AdamWLegacy", ADAM, True), _heavy("AdamW", ADAM, caution=True))),
    "clion": Method(LION, (_po("Lion", LION, cautious=True), _timm("Lion", LION, True))),
    "cadan": Method(ADAN, (_timm("Adan", ADAN, True),)),
    "csgdm": Method(BALL, (_timm("SGDW", BALL, True), _heavy("SGD", HEAVY_BALL, caution=True))),
    "grams": Method({**ADAM, "eps_form": "after"}, (_po("Grams", ADAM),)),
    "tam": Method(BALL),
    "lamb": Method({**LAMB, "exclude_1d": False}, (_timm("Lamb", {**LAMB, "max_grad_norm": None}),)),
    "lars": Method({**LARS, "exclude_1d": False}, (_timm("Lars", LARS),)),
    "ano": Method(ANO, (_po("Ano", ANO),)),
    "anolog": Method({**_without(ANO, "betas"), "beta2": 0.99}, (_po("Ano", ANO, logarithmic_schedule=True),)),
    "sgd_sai": Method(SAI, (_po("SGDSaI", SAI),)),
    "spam": Method(STABLE, (_po("SPAM", STABLE),)),
    "stable_spam": Method(STABLE, (_po("StableSPAM", STABLE),)),
    "muon": Method(
        MATRIX,
        (
            _torch("Muon", {**MATRIX, "eps": 1e-7}),
            _po("Muon", {**MATRIX, "ns_coeffs": "original"}),
            _timm("Muon", {**MATRIX, "ns_coefficients": "original", "adjust_lr_fn": "original"}),
            _heavy("Muon", {"lr": 2e-2, "betas": (0.95, 0.99), "nesterov": True, "weight_decay": 1e-2}),
            Peer("dion", "Muon", DION, "bfloat16 dion"),
        ),
        {
            "bfloat16": {"ns_dtype": torch.bfloat16},
            "bfloat16 dion": {
                "ns_dtype": torch.bfloat16,
                "adjust_lr": "match_rms_adamw",
                "ns_coefficients": DION_STEPS,
            },
        },
    ),
}

# What a method adds its work to. A method that is not listed is held against AdamW.
BASES = {
    "adabelief": "adam", "adamp": "adam", "adatam": "adam", "alphaadam": "adam", "ano": "adam", "anoall": "adam",
    "anolog": "adam", "anosqrt": "adam", "gsm": "sgd", "smmf": "adam", "spam": "adam", "stable_spam": "adam",
    "step": "adam", "clion": "lion", "lionk": "lion", "cadan": "adan", "adaptive_braking": "sgd", "alr_hb": "sgd",
    "alr_mag": "sgd", "alr_nag": "sgd", "am_sgd": "sgd", "auon": "sgd", "csgdm": "sgd", "lars": "sgd", "momo": "sgd",
    "nl_deep": "sgd", "nl_delta": "sgd", "scale": "sgd", "sgd_sai": "sgd", "sgdp": "sgd", "tam": "sgd",
    "cmuon": "muon", "fismo": "muon", "hybrid_auon": "muon", "m3": "muon", "namo": "muon", "namo_d": "muon",
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a method's chains ask for."""

    kind: str
    """"elementwise", "sum" (over a tensor, its rows or all of them) or "matrix"."""
    kernels: int
    """The most that it compiles: for each chain a pass for every question and one that writes, for two sizes."""


def about(optimizer: optim.Optimizer) -> About:
    """What the chains of an optimizer ask for."""
    asked = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            chain = optimizer.chain_of(group).for_shape(p.shape)
            asked[id(chain)] = chain.questions(group)
    kinds = {q.kind for questions in asked.values() for q in questions}
    kernels = sum(2 * (1 + len(outside(questions, True))) for questions in asked.values())
    return About("matrix" if "matrix" in kinds else "sum" if kinds else "elementwise", kernels)
