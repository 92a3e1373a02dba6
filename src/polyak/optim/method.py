"""What a named method is: a declaration and a chain."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from polyak.declare import Argument, Betas, Declared, Eps, Field, Hyper, Lr, Range, WeightDecay, fills
from polyak.optim.engine.execution import Execution
from polyak.optim.engine.keeping import Rounding, Storage
from polyak.optim.engine.optimizer import TORCH_SWITCHES, Optimizer
from polyak.optim.engine.rule import Options, Slot
from polyak.optim.groups import GROUP_ROLES, REST, Role, split_roles

Family = Literal[
    "momentum", "adaptive", "sign", "step size", "robust and lean", "matrix", "second order", "sparse", "other"
]
"""What the methods of the catalogue are listed by; "other" is what no method of polyak is."""

Evidence = Literal["the authors' code", "independent code", "own transcription", "interpretation"]
"""What a method's trajectories were recorded from. A transcription is of the paper, and an interpretation of what the
paper leaves open: both only tell that the code does what we think."""

_SETTABLE = ("execution", "check_finite")


class Method(Declared, Optimizer):
    """A published method: annotated fields, its equation in the docstring, and ``recipe``, its chain of rules.

    ::

        w <- what the chain of recipe(options) makes of w

    See :mod:`polyak.declare` for the fields. ``slug`` is its name in :func:`polyak.optim.get`, ``family`` what it is
    listed under, ``vectors`` the recorded trajectories it is checked with and ``evidence`` what they come from.
    ``options`` of :meth:`recipe` are a parameter group. Options that are ``one_for_all`` are refused in a group if they
    differ from those of the first, also at a step.
    """

    family: ClassVar[Family] = "other"
    evidence: ClassVar[Evidence] = "the authors' code"
    roles: ClassVar[tuple[Role, ...]] = ()
    one_for_all: ClassVar[tuple[str, ...]] = ()

    params: Annotated[ParamsT, Argument("parameters, named parameters or groups")]
    _: KW_ONLY
    execution: Annotated[Execution, Argument('"auto", "eager", "batched" or "compiled"')] = "auto"
    maximize: Annotated[bool, Argument("ascend instead of descending")] = False
    check_finite: Annotated[bool, Argument("refuse a step with a gradient that is not finite")] = False
    state_storage: Annotated[
        Storage, Argument('how averages are kept: "float32", "bfloat16", "int8" or "factored"')
    ] = "float32"
    rounding: Annotated[
        Rounding, Argument('how half-precision weights are written: "nearest", "stochastic" or "kahan"')
    ] = "nearest"

    def _begin(self, values: dict[str, Any]) -> None:
        Optimizer.__init__(self, **values)

    @classmethod
    def _unknown(cls, name: str) -> TypeError:
        if name in TORCH_SWITCHES:
            return TypeError(f"{cls.__name__}: {name!r} is a switch of torch.optim; here execution= decides")
        return super()._unknown(name)

    def _elsewhere(self, name: str) -> str:
        return f"{type(self).__name__} has no attribute {name!r}: each group has its own, in optimizer.param_groups"

    def _set_field(self, field: Field, value: Any) -> None:
        if field.name not in _SETTABLE:
            raise AttributeError(self._elsewhere(field.name))
        self.__dict__[field.name] = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options fall back to the constructor's, or to the first group's if they are one for all."""
        group = dict(param_group)
        for name in self.one_for_all if self.param_groups else ():
            group.setdefault(name, self.param_groups[0][name])
        self.check_together([*self.param_groups, {**self.defaults, **group}])
        super().add_param_group(group)

    def check_together(self, groups: Sequence[Options]) -> None:
        """Groups agree on what is one for all."""
        for name in self.one_for_all:
            first, *others = (_untyped(group[name]) for group in groups)
            for other in others:
                if other is not first and not _is_elsewhere(other) and other != first:
                    raise ValueError(
                        f"{self._owner()}: {name} must be the same in all groups, {first!r}, got {other!r}"
                    )

    @classmethod
    def memories(cls) -> list[tuple[Slot, str]]:
        """What the method keeps for a weight, each with the condition under which it does (empty: by default)."""
        found: dict[str, tuple[Slot, str]] = {}
        for options, condition in _variants(cls):
            for slot in cls.recipe(options).slots:
                found.setdefault(slot.name, (slot, condition))
        return list(found.values())

    def advise(self, message: str) -> None:
        """Warn of a likely mistake, at the line outside of polyak and torch where it was made."""
        frame, level = sys._getframe(1), 2
        ours = ("polyak.", "torch.", "contextlib")
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
            frame, level = frame.f_back, level + 1
        warnings.warn(f"{type(self).__name__}: {message}", UserWarning, stacklevel=level)


def _untyped(value: Any) -> Any:
    """A list as the tuple of its entries, which says the same."""
    return tuple(value) if isinstance(value, list) else value


def _is_elsewhere(value: Any) -> bool:
    """Whether reading it would wait for a device."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _variants(method: type[Method]) -> Iterator[tuple[dict[str, Any], str]]:
    """The default options, then those that select other code, one change at a time."""
    defaults = {h.name: h.default for h in method.hypers}
    yield defaults, ""
    yield from ((defaults | {"role": role}, f"{role} groups") for role in method.roles[1:])
    if method.roles:
        yield defaults | {"role": REST}, "other groups"
    for hyper in method.hypers:
        for value, words in _other_values(hyper):
            yield defaults | {hyper.name: value}, f"{hyper.name}{words}"


def _other_values(hyper: Hyper) -> Iterator[tuple[Any, str]]:
    if isinstance(hyper.allowed, tuple):
        yield from ((value, f"={value!r}") for value in hyper.allowed if value != hyper.default)
    elif hyper.static == "zero" and hyper.default == 0:
        yield 0.5, " > 0"


class MatrixMethod(Method):
    """A method for matrices, with AdamW for everything else in the same optimizer.

    ::

        W <- what the method makes of a matrix;  w <- AdamW's step for embeddings, heads and vectors

    Groups carry a ``role``: "matrix", "vector", "embedding", "head", or "rest" for those that mix what is left. The
    main rule takes groups whose role is among ``roles``; the others get the values of the ``aux_`` arguments. A module
    is split by :func:`polyak.optim.roles_of`, a bare list by names and the number of dimensions. Schedulers drive each
    group's ``lr``; of torch's schedulers that cycle momentum, the groups of the main rule follow, AdamW's ``betas``
    stay.
    """

    roles: ClassVar[tuple[Role, ...]] = ("matrix",)

    params: Annotated[  # type: ignore[assignment]
        ParamsT | nn.Module, Argument("a module, parameters, named parameters, or groups with a ``role``")
    ]
    _: KW_ONLY
    aux_lr: Annotated[Lr, fills("lr"), Range(1e-4, 3e-2), "learning rate of the other groups"] = 3e-4
    aux_betas: Annotated[Betas, fills("betas"), "retention rates of AdamW, other groups"] = (0.9, 0.95)
    aux_eps: Annotated[Eps, fills("eps"), "eps of AdamW, other groups"] = 1e-10
    aux_weight_decay: Annotated[WeightDecay, fills("weight_decay"), "weight decay of the other groups"] = 0.0

    def _begin(self, values: dict[str, Any]) -> None:
        self._fills = {h.fills: values.pop(h.name) for h in self.arguments if h.fills}
        values["params"] = split_roles(values["params"], self.roles)
        only_filled = {name: value for name, value in self._fills.items() if name not in self._fields}
        super()._begin({**values, **only_filled})
        # torch's schedulers look into the defaults: betas there would hide the momentum of the main rule from them
        for name in only_filled:
            del self.defaults[name]

    @classmethod
    def is_main(cls, options: Options) -> bool:
        """Whether the main rule takes this group."""
        return options.get("role", cls.roles[0]) in cls.roles

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; without a ``role`` it is one for the main rule."""
        group = dict(param_group)
        role = group.setdefault("role", self.roles[0])
        if role not in GROUP_ROLES:
            raise ValueError(f"{self._owner()}: role must be one of {list(GROUP_ROLES)}, got {role!r}")
        for name, value in self._fills.items():
            if not self.is_main(group) or name not in self._fields:
                group.setdefault(name, value)
        super().add_param_group(group)

    def check_options(self, group: Options) -> None:
        """Groups of the main rule hold matrices."""
        if not self.is_main(group):
            return
        listed = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for i, entry in enumerate(listed):
            p = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(p, Tensor) and p.ndim < 2:
                name = entry[0] if isinstance(entry, tuple) else f"parameter {i}"
                raise ValueError(
                    f"{self._owner()} needs matrices, {name} has shape {tuple(p.shape)}; "
                    'put vectors in a group with role="vector"'
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fills": self._fills}
