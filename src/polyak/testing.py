"""Reference vectors: build the optimizer that a vector's manifest describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from polyak.optim.create import get
from polyak.optim.engine.optimizer import Optimizer

Manifest = Mapping[str, Any]
Mapped = tuple[str, dict[str, Any]]


def from_manifest(manifest: dict[str, Any], named_params: dict[str, Parameter], **engine_options: Any) -> Optimizer:
    """The optimizer of a reference vector.

    Names of arguments in manifests follow the source that was run; here is the one place that translates them.

    Args:
        manifest: a vector's JSON: ``rule``, ``variant`` and ``hyperparameters`` are read.
        named_params: the vector's tensors by name.
        **engine_options: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        KeyError: if no method implements the manifest's rule, or its variant is not wanted; names it.
    """
    rule = manifest["rule"]
    mapping = _MAPPINGS.get(rule)
    if mapping is None or manifest.get("kind") not in (None, "trajectory"):
        raise KeyError(f"no method implements the rule {rule!r}")
    slug, arguments = mapping(manifest)
    if slug == "muon":
        return _muon(manifest, named_params, arguments, engine_options)
    return get(slug)(named_params.items(), **arguments, **engine_options)


def _renamed(
    slug: str, drop: tuple[str, ...] = (), rename: Mapping[str, str] | None = None, **fixed: Any
) -> Callable[[Manifest], Mapped]:
    names = dict(rename or {})

    def mapping(manifest: Manifest) -> Mapped:
        given = {names.get(k, k): _tupled(v) for k, v in manifest["hyperparameters"].items() if k not in drop}
        return slug, given | fixed

    return mapping


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _lion(manifest: Manifest) -> Mapped:
    return _renamed("lion", rename={"decoupled_weight_decay": "decay_relative_to_initial_lr"})(manifest)


def _clion(manifest: Manifest) -> Mapped:
    slug, given = _renamed("clion", drop=("caution",), rename={"cautious_factor": "opposed"})(manifest)
    if manifest["variant"] == "default":
        return slug, given
    return slug, given | {"mask_scale": "mean"} | ({"mask_floor": 1e-5} if manifest["variant"] == "factor" else {})


def _cadamw(manifest: Manifest) -> Mapped:
    form = "after" if manifest["variant"] == "epsafter" else "before"
    return _renamed("cadamw", drop=("caution",), eps_form=form)(manifest)


def _cautious(manifest: Manifest) -> Mapped:
    return _renamed(manifest["variant"], drop=("caution",))(manifest)


def _adabelief(manifest: Manifest) -> Mapped:
    slug, given = _renamed("adabelief", drop=("weight_decouple", "fixed_decay"))(manifest)
    h = manifest["hyperparameters"]
    form = "coupled" if not h.get("weight_decouple", True) else "fixed" if h.get("fixed_decay") else "decoupled"
    return slug, given | {"decay_form": form}


def _sgdp(manifest: Manifest) -> Mapped:
    alias = manifest["variant"] == "default" and not manifest["hyperparameters"].get("nesterov")
    return _renamed("sgdp", project_buffer=alias)(manifest)


def _tam(manifest: Manifest) -> Mapped:
    if manifest["variant"] == "pto":
        raise KeyError(f"{manifest['name']} pins a peer's variant of {manifest['rule']!r}, which is not the paper's")
    return _renamed(manifest["rule"])(manifest)


def _reality_check(manifest: Manifest) -> Mapped:
    slugs = {"adamw": "adamw", "nesterov": "sgd"}
    if manifest["variant"] not in slugs:
        raise KeyError(f"no method implements the variant {manifest['variant']!r} of 'reality-check'")
    return _renamed(slugs[manifest["variant"]], drop=("foreach",))(manifest)


def _muon_options(manifest: Manifest) -> Mapped:
    variant = manifest["variant"]
    names = {"adjust": "adjust_lr", "eps": "ns_eps"}
    slug, given = _renamed("muon", drop=("adjust_lr_fn",), rename=names)(manifest)
    given["ns_dtype"] = torch.float64 if variant.endswith("-f64") else torch.bfloat16
    given["conv_scale"] = "kernel"
    if variant.startswith("torch"):
        given["ns_eps_form"] = "clamp"
    if variant.startswith("moonlight"):
        given["aux_eps_form"] = "before"
        given["ns_eps"] = 1e-7 * (1 - given["momentum"])  # its heavy ball is 1 / (1 - momentum) times our average
    return slug, given


def _muon(
    manifest: Manifest, named_params: dict[str, Parameter], arguments: dict[str, Any], engine_options: dict[str, Any]
) -> Optimizer:
    """Keller Jordan's takes all matrices; Moonlight's and torch's only 2-d ones; torch's leaves the rest alone."""
    variant = manifest["variant"]
    only_2d = not variant.startswith("kellerjordan")
    matrices = [(n, p) for n, p in named_params.items() if (p.ndim == 2 if only_2d else p.ndim >= 2)]
    chosen = {n for n, _ in matrices}
    groups: list[dict[str, Any]] = [{"params": matrices, "use_muon": True}]
    rest = [(n, p) for n, p in named_params.items() if n not in chosen]
    if rest and not variant.startswith("torch"):
        groups.append({"params": rest, "use_muon": False})
    return get("muon")(groups, **arguments, **engine_options)


_MAPPINGS: dict[str, Callable[[Manifest], Mapped]] = {
    "sgd": _renamed("sgd"),
    "adam": _renamed("adam"),
    "adamw": _renamed("adamw"),
    "adan": _renamed("adan"),
    "lion": _lion,
    "adabelief": _adabelief,
    "ademamix": _renamed("ademamix"),
    "adamp": _renamed("adamp"),
    "sgdp": _sgdp,
    "cadamw": _cadamw,
    "clion": _clion,
    "cautious": _cautious,
    "grams": _renamed("grams"),
    "tam": _tam,
    "adatam": _tam,
    "adatamw": _tam,
    "muon": _muon_options,
    "reality-check": _reality_check,
}
