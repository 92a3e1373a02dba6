"""Parameter groups: which weights are hidden matrices, embeddings, heads or vectors, and which are decayed."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

Role = Literal["matrix", "vector", "embedding", "head"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "embedding", "head")
HEADS = ("*lm_head*", "*head", "head.*", "*.head.*", "*classifier*", "fc.weight", "*output_projection*")
EMBEDDINGS = ("*embed*", "*wte*", "*wpe*", "*pos_emb*", "*cls_token*")


def roles_of(module: nn.Module, overrides: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """The role of every trainable parameter of a module, by name.

    Fewer than 2 dimensions is a "vector"; the weight of an ``nn.Embedding`` (or a name like one) an "embedding"; the
    weight of the last ``nn.Linear`` of the module, unless it is the only matrix, and names like ``lm_head`` or
    ``classifier``, the "head"; what is left is "matrix". A weight shared by embedding and head counts as embedding.

    Args:
        module: the model.
        overrides: role by name pattern (``fnmatch``), e.g. ``{"decoder.out.*": "head"}``; first match wins.

    Raises:
        ValueError: an unknown role, or a pattern that matches nothing.
    """
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    overrides = overrides or {}
    for pattern, role in overrides.items():
        if role not in ROLES:
            raise ValueError(f"roles[{pattern!r}] must be one of {list(ROLES)}, got {role!r}")
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"roles: no parameter matches {pattern!r}; there are {sorted(names)[:8]} ...")
    embedded = {id(m.weight) for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    hidden = {id(p) for p in names.values() if p.ndim > 1} - embedded
    head = {id(linear[-1].weight)} if linear and len(hidden) > 1 else set()
    return {name: _role(name, p, overrides, embedded, head) for name, p in names.items()}


def _role(name: str, p: Tensor, overrides: Mapping[str, Role], embedded: set[int], head: set[int]) -> Role:
    for pattern, role in overrides.items():
        if fnmatch.fnmatch(name, pattern):
            return role
    if p.ndim < 2:
        return "vector"
    if id(p) in embedded or _matches(name, EMBEDDINGS):
        return "embedding"
    return "head" if id(p) in head or _matches(name, HEADS) else "matrix"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)


def split_matrices(params: Any, overrides: Mapping[str, Role] | None = None) -> list[dict[str, Any]]:
    """Groups with ``use_muon``: hidden matrices, and the rest. Explicit groups are returned as they are."""
    if isinstance(params, nn.Module):
        roles = roles_of(params, overrides)
        named = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
        return _two_groups(
            [(n, p) for n, p in named if roles[n] == "matrix"], [e for e in named if roles[e[0]] != "matrix"]
        )
    listed: list[Any] = list(params) if not isinstance(params, Tensor) else [params]
    if any(isinstance(entry, dict) for entry in listed):
        return listed
    matrices = [entry for entry in listed if _is_hidden(entry)]
    chosen = {id(entry) for entry in matrices}
    return _two_groups(matrices, [entry for entry in listed if id(entry) not in chosen])


def _is_hidden(entry: Any) -> bool:
    if not isinstance(entry, tuple):
        return isinstance(entry, Tensor) and entry.ndim >= 2
    name, p = entry
    return p.ndim >= 2 and not _matches(name, EMBEDDINGS) and not _matches(name, HEADS)


def _two_groups(matrices: list[Any], rest: list[Any]) -> list[dict[str, Any]]:
    groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}]
    return [group for group in groups if group["params"]]


def decay_groups(
    module: nn.Module,
    weight_decay: float | None,
    no_decay_1d: bool,
    matrices: bool,
    overrides: Mapping[str, Role] | None = None,
) -> list[dict[str, Any]]:
    """Groups of a module's trainable parameters, each shared parameter once.

    Args:
        module: the model.
        weight_decay: for the decayed groups; None leaves the method's default.
        no_decay_1d: no decay on tensors with fewer than 2 dimensions (biases, norms).
        matrices: keep hidden matrices apart from the rest, marked by ``use_muon``.
        overrides: role by name pattern.
    """
    roles = roles_of(module, overrides)
    kinds: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            key = (matrices and roles[name] == "matrix", not (no_decay_1d and p.ndim < 2))
            kinds.setdefault(key, []).append((name, p))
    groups = []
    for (hidden, decayed), params in sorted(kinds.items(), key=lambda item: item[0], reverse=True):
        group: dict[str, Any] = {"params": params}
        if matrices:
            group["use_muon"] = hidden
        if not decayed:
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
        groups.append(group)
    return groups
