"""How recorded names of matrix rules meet ours, and which tensors were matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from polyak.optim.groups import REST
from polyak.testing.given import Given


def scale(given: Given) -> tuple[str, dict[str, Any]]:
    given.rename(adam_lr="aux_lr", adamw_betas="aux_betas", adamw_eps="aux_eps", wd="weight_decay")
    return "scale", {"aux_weight_decay": given.left.get("weight_decay", 0.0)}


def m3(given: Given) -> tuple[str, dict[str, Any]]:
    literal, average = "literal Algorithm 1 (sums, no decay), cubic Newton-Schulz", "ema with RMS cap"
    if given.variant_of(literal, average) == average:
        return "m3", {"variant": "ema"}
    given.rename(slow_chunk="frequency")
    given.left["betas"] = tuple(given.left.pop(f"beta{i}") for i in (1, 2, 3))
    given.left["ns_eps"] = given.left["eps"]
    return "m3", {"variant": "paper", "ns_coefficients": "cubic"}


def muon(given: Given) -> tuple[str, dict[str, Any]]:
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


def namo(given: Given) -> tuple[str, dict[str, Any]]:
    exact = given.take("use_exact_svd", False, (False, True))
    variant = given.variant_of("newton-schulz float64", "newton-schulz official dtypes", "exact-svd float64")
    fixed = {
        "ns_coefficients": "svd" if exact else "original",
        "ns_dtype": torch.bfloat16 if "official" in variant else torch.float64,
        "aux_lr": given.left["lr"],
    }
    return given.rule.replace("-", "_"), fixed


def auon(given: Given) -> tuple[str, dict[str, Any]]:
    head, paper = "repository HEAD", "paper v1 / first released script, float64"
    variant = given.variant_of(head, f"HybridAuON {head}", paper)
    if variant.startswith("Hybrid"):
        return "hybrid_auon", {"ns_dtype": torch.float64}
    return "auon", {"variant": "paper", "gamma": 1.0} if variant == paper else {"variant": "head"}


def auon_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """The head's steps all tensors, the paper's 2-d ones alone."""
    taken = [(n, p) for n, p in named_params.items() if p.ndim == 2 or not manifest["variant"].startswith("paper")]
    return [{"params": taken, "role": "matrix"}]


def fismo(given: Given) -> tuple[str, dict[str, Any]]:
    given.variant_of("Algorithm 1")
    given.take("polar", "ns", ("ns",))
    return "fismo", {"ns_dtype": torch.float64}


def only_matrices(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """What has fewer than 2 dimensions stays."""
    return [{"params": [(name, p) for name, p in named_params.items() if p.ndim >= 2], "role": "matrix"}]


def matrix_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """All with at least 2 dimensions are matrices."""
    kinds: dict[str, list[tuple[str, Parameter]]] = {"matrix": [], REST: []}
    for name, p in named_params.items():
        kinds["matrix" if p.ndim >= 2 else REST].append((name, p))
    return [{"params": ps, "role": role} for role, ps in kinds.items() if ps]


def muon_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
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


def scale_groups(manifest: Mapping[str, Any], named_params: dict[str, Parameter]) -> list[dict[str, Any]]:
    """Its roles are named in the manifest."""
    roles = {"main": "matrix", "embed": "embedding", "last": "head", "vector": REST}
    kinds: dict[str, list[tuple[str, Parameter]]] = {}
    for name, p in named_params.items():
        kinds.setdefault(roles[manifest["roles"][name]], []).append((name, p))
    return [{"params": ps, "role": role} for role, ps in kinds.items()]
