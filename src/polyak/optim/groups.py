"""Parameter groups: which weights are hidden matrices, embeddings, heads or vectors, and which are decayed."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

Role = Literal["matrix", "vector", "embedding", "head"]
ROLES: tuple[Role, ...] = ("matrix", "vector", "embedding", "head")
REST = "rest"  # of groups: several roles in one
GROUP_ROLES = (*ROLES, REST)
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


def split_roles(params: Any, main: tuple[Role, ...], overrides: Mapping[str, Role] | None = None) -> list[Any]:
    """Groups with a ``role``: one for each of ``main``, and the rest. Explicit groups are returned as they are."""
    if isinstance(params, nn.Module):
        by_name: Mapping[str, Role] = roles_of(params, overrides)
        named = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
        return _grouped(named, [by_name[name] for name, _ in named], main)
    listed: list[Any] = list(params) if not isinstance(params, Tensor) else [params]
    if any(isinstance(entry, dict) for entry in listed):
        return listed
    return _grouped(listed, ["matrix" if _is_hidden(entry) else "vector" for entry in listed], main)


def _is_hidden(entry: Any) -> bool:
    if not isinstance(entry, tuple):
        return isinstance(entry, Tensor) and entry.ndim >= 2
    name, p = entry
    return p.ndim >= 2 and not _matches(name, EMBEDDINGS) and not _matches(name, HEADS)


def _grouped(entries: list[Any], roles: list[Role], main: tuple[Role, ...]) -> list[dict[str, Any]]:
    groups: dict[str, list[Any]] = {role: [] for role in (*main, REST)}
    for entry, role in zip(entries, roles, strict=True):
        groups[role if role in main else REST].append(entry)
    return [{"params": listed, "role": role} for role, listed in groups.items() if listed]


def decay_groups(
    module: nn.Module,
    weight_decay: float | None,
    no_decay_1d: bool,
    main: tuple[Role, ...] = (),
    overrides: Mapping[str, Role] | None = None,
    aux_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of a module's trainable parameters, each shared parameter once.

    Args:
        module: the model.
        weight_decay: for the decayed groups; None leaves the method's default.
        no_decay_1d: no decay on tensors with fewer than 2 dimensions (biases, norms).
        main: roles that a matrix method keeps apart; its groups then have a ``role``.
        overrides: role by name pattern.
        aux_weight_decay: for the decayed groups of other roles; None is ``weight_decay``.
    """
    roles = roles_of(module, overrides)
    order = {role: i for i, role in enumerate((*main, REST))}
    kinds: dict[tuple[str, bool], list[tuple[str, Tensor]]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            role = roles[name] if roles[name] in main else REST
            kinds.setdefault((role, not (no_decay_1d and p.ndim < 2)), []).append((name, p))
    groups = []
    for (role, decayed), params in sorted(kinds.items(), key=lambda item: (order[item[0][0]], not item[0][1])):
        group: dict[str, Any] = {"params": params}
        if main:
            group["role"] = role
        own = aux_weight_decay if main and role == REST and aux_weight_decay is not None else weight_decay
        if not decayed:
            group["weight_decay"] = 0.0
        elif own is not None:
            group["weight_decay"] = own
        groups.append(group)
    return groups


def set_option(group: dict[str, Any], name: str, value: float) -> None:
    """Write an option of a group; into the tensor where it is one, which others may hold, as compiled steps do."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
