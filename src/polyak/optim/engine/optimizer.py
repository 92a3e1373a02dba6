"""The engine: a ``torch.optim.Optimizer`` that runs a chain of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Self

from polyak.declare import Hyper
from polyak.optim.engine import checkpoint, diagnose, shared, views
from polyak.optim.engine.chain import Chain, check_complete
from polyak.optim.engine.execution import Execution, Occasion, checked, in_force, untraced
from polyak.optim.engine.intake import inputs_of, is_request_for_state, materialized, refuse_unfit
from polyak.optim.engine.keeping import ROUNDINGS, STORAGES, Keeping, Rounding, Storage
from polyak.optim.engine.listening import Listens
from polyak.optim.engine.losses import TakesLoss
from polyak.optim.engine.member import is_sharded
from polyak.optim.engine.plan import GroupPlan
from polyak.optim.engine.planner import Planner
from polyak.optim.engine.rule import Options
from polyak.optim.engine.run import drive, without_autocast
from polyak.optim.engine.sharding import check_shards

TORCH_SWITCHES = ("foreach", "fused", "capturable", "differentiable")

_chains: dict[tuple[Any, ...], Chain] = {}


class Optimizer(TakesLoss, Listens, torch.optim.Optimizer):
    """Any chain of rules as a PyTorch optimizer.

    Args:
        params: what any ``torch.optim`` optimizer takes: parameters, named parameters or groups.
        rules: the chain; see :func:`polyak.optim.chain`.
        execution: ``"auto"`` (compiled where it is worth it), ``"eager"`` (one tensor after the other), ``"batched"``
            (no compiler) or ``"compiled"``; the environment variable ``POLYAK_EXECUTION`` overrides it.
        maximize: ascend.
        check_finite: refuse a step with a non-finite gradient, naming the parameter.
        state_storage: how memories that are averages are kept: ``"float32"`` (in at least that), ``"bfloat16"`` (half
            the bytes), ``"int8"`` (a quarter; tensors of 4,096 elements or more that 256 divides) or ``"factored"``
            (row and column sums, and a bit a sign). What is stored low is rounded at random; counters, signs and
            previous values stay exact.
        rounding: how a half-precision weight is written: ``"nearest"``, ``"stochastic"``, or ``"kahan"`` (bfloat16;
            what it could not hold is kept in one more tensor like it).
        **hyperparameters: values for the hyperparameters that the chain's rules declare.

    Raises:
        ValueError: an empty or duplicate parameter list, a hyperparameter out of its range, an incomplete chain.
        TypeError: an unknown hyperparameter (the known ones are listed), complex parameters, rules that are no chain.
    """

    slug: ClassVar[str] = ""
    hypers: ClassVar[tuple[Hyper, ...]] = ()

    def __init__(
        self,
        params: ParamsT,
        rules: Chain | None = None,
        *,
        execution: Execution = "auto",
        maximize: bool = False,
        check_finite: bool = False,
        state_storage: Storage = "float32",
        rounding: Rounding = "nearest",
        **hyperparameters: Any,
    ) -> None:
        if isinstance(rules, Chain):
            check_complete(rules)
        elif rules is not None or type(self) is Optimizer:
            raise TypeError(f"{self._owner()}: rules must be a chain, see polyak.optim.chain; got {rules!r}")
        self._rules = rules
        self.execution: Execution = checked(execution)
        in_force(self.execution, 0)  # a wrong word in the environment is told here
        self.check_finite = check_finite
        self._planner = Planner()
        self._stepped = False
        self.is_released = False
        defaults = self._defaults(hyperparameters)
        defaults["maximize"] = bool(maximize)
        defaults["method"] = self._method()
        defaults |= {"state_storage": state_storage, "rounding": rounding}
        super().__init__(materialized(params, self._owner()), defaults)

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """The chain of a group with these options; named methods override it."""
        raise NotImplementedError

    def chain_of(self, group: Options) -> Chain:
        """The chain that a parameter group runs."""
        if self._rules is not None:
            return self._rules
        key = (type(self), *(h.signature(group[h.name]) for h in self.declared()), *map(group.get, ("role", "phase")))
        found = _chains.get(key)
        if found is None:
            found = _chains[key] = self.recipe(group)
        return found

    def declared(self) -> tuple[Hyper, ...]:
        """The hyperparameters of this optimizer: the method's, or those of the chain's rules."""
        return self.hypers if self._rules is None else self._rules.hypers

    def _owner(self) -> str:
        return type(self).__name__

    def _method(self) -> str:
        return self.slug or "+".join(rule.name for rule in self._rules or ())

    def _defaults(self, given: dict[str, Any]) -> dict[str, Any]:
        known = {h.name: h for h in self.declared()}
        for name in given:
            if name in TORCH_SWITCHES:
                raise TypeError(f"{self._owner()}: {name!r} is a switch of torch.optim; here execution= decides")
            if name not in known:
                raise TypeError(f"{self._owner()} has no argument {name!r}; it has {sorted(known)}")
        return {name: given.get(name, hyper.default) for name, hyper in known.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options fall back to the constructor's. Checks all before anything changes."""
        group = dict(param_group)
        listed = group.get("params")
        if isinstance(listed, Iterable) and not isinstance(listed, (Tensor, set, list)):
            group["params"] = list(listed)
        self.check_group({**self.defaults, **group})
        super().add_param_group(group)
        shared.complete(self, self.param_groups[-1])

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group with options out of range, or with parameters that cannot be optimized."""
        for hyper in self.declared():
            hyper.check(group[hyper.name], self._owner())
        for name, allowed in (("state_storage", STORAGES), ("rounding", ROUNDINGS)):
            if group.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{self._owner()}: {name} must be one of {list(allowed)}, got {group[name]!r}")
        self.check_options(group)
        shared.check(self, group)
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        refuse_unfit([p[1] if isinstance(p, tuple) else p for p in params], self._owner())
        for i, entry in enumerate(params):
            name, p = entry if isinstance(entry, tuple) else (f"parameter {i}", entry)
            if is_sharded(p):
                check_shards(p, name, self.chain_of(group).for_shape(p.shape), group)

    def check_together(self, groups: Sequence[Options]) -> None:
        """Refuse groups that do not go together; methods with such rules override it."""

    def check_options(self, group: Options) -> None:
        """Refuse combinations of hyperparameters; methods with such rules override it."""

    def measure(self) -> dict[str, Tensor]:
        """What the optimizer finds itself before a step and gives its rules by name, as 0-d float64 tensors.

        Asked only where a rule reads a name besides the loss and what flows through layers; methods override it.
        """
        return {}

    def keeping_of(self, group: Options) -> Keeping:
        """How the memories of a parameter group are kept."""
        return Keeping(group.get("state_storage", "float32"), group.get("rounding", "nearest"))

    def salt_of(self, index: int, i: int) -> int:
        """A number that tells parameter ``i`` of group ``index`` from the others, for random rounding."""
        return 1 + i + sum(len(group["params"]) for group in self.param_groups[:index])

    def chosen(self) -> tuple[str, str]:
        """How the optimizer runs now, and why."""
        return self._planner.chosen(self)

    @overload
    def step(self, closure: None = None, *, loss: float | Tensor | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, loss: float | Tensor | None = None) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, loss: float | Tensor | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.
            loss: the loss, for chains that read it, where there is no closure; see also :meth:`set_loss`.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: a sparse gradient, with ``check_finite`` a non-finite one, or a loss that is read and not
                given or not finite; nothing has changed then.
            TypeError: a closure and a loss, or a loss that is read and no number.
            ValueError: options that groups must have in common and do not; nothing has changed then.
        """
        found, loss = None, self._given(closure, loss)
        try:
            if closure is not None:
                with torch.enable_grad():
                    loss = found = closure()
            self._advance(loss)
        finally:
            self._loss = None
        return found

    @untraced
    def _advance(self, loss: float | Tensor | None) -> None:
        """One step with the gradients present; nothing is gained by tracing it."""
        if views.is_predicted(self):
            raise RuntimeError(f"{self._owner()}: the weights are predicted ones; restore() them before the step")
        self.check_together(self.param_groups)  # a user may have written into them
        if self.is_released and all(p.grad is None for group in self.param_groups for p in group["params"]):
            return  # all have stepped in the backward pass
        asked = not self._stepped and is_request_for_state(self.param_groups)
        inputs = {} if asked else inputs_of(self, self._taps, loss)
        try:
            with self.around_step("request" if asked else "step"):
                plans = self._planner.current(self)
                if not asked:
                    self.advance(plans, inputs)
        finally:
            self._planner.let_go()
        if self._taps is not None:
            self._taps.clear()

    def around_step(self, occasion: Occasion) -> AbstractContextManager[None]:
        """What a method does around the chains: it may put other gradients in place, and finishes when all is written.

        ``occasion``: a "step"; a "rehearsal" of one, which writes nothing; or a "request" for the state alone.
        """
        return nullcontext()

    def complete_state(self) -> None:
        """Make the memories that the state of a parameter lacks, where it has one already."""
        self._planner.without_gradients(self, bind=True)

    @torch.no_grad()
    @untraced
    def advance(self, plans: Sequence[GroupPlan], inputs: dict[str, Any] | None = None) -> None:
        """Step what the plans describe."""
        self._stepped = True
        with without_autocast(d for plan in plans for d in plan.devices):
            inputs = {**(inputs or {}), **shared.present(self, plans)}
            moments = [plan.moments(inputs) for plan in plans]
            for plan, own in zip(plans, moments, strict=True):
                plan.prepare(own)
            new = drive([r for plan, own in zip(plans, moments, strict=True) for r in plan.runs(own)])
            shared.write(plans, new)
        for plan in plans:
            plan.count_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; what flowed through tapped layers goes with the gradients."""
        if self._taps is not None:
            self._taps.clear()
        super().zero_grad(set_to_none)

    def explain(self) -> str:
        """Which path every group takes, and why: one line a kind of tensor."""
        chosen, reason = self.chosen()
        plans = self._planner.without_gradients(self)
        lines = [f"{self._owner()}: {chosen} ({reason})"]
        return "\n".join(lines + [line for plan in plans for line in plan.describe()])

    def diagnostics(self, *, loss: float | Tensor | None = None) -> dict[str, dict[str, float]]:
        """Read-outs of the step that the gradients present now would give, by parameter; see :mod:`diagnose`.

        ``loss``: for chains that read it; or else what :meth:`set_loss` gave.
        """
        inputs = inputs_of(self, self._taps, self._given(None, loss))
        with self.around_step("rehearsal"):
            plans = self._planner.current(self)
            with without_autocast(d for plan in plans for d in plan.devices):
                return diagnose.read(plans, {**inputs, **shared.present(self, plans)})

    @torch.no_grad()
    def _forget(self) -> None:
        """Zero all memories and counters."""
        for memory in checkpoint.state_tensors(self):
            memory.zero_()
        shared.reset(self)

    def state_bytes(self) -> int:
        """Bytes of optimizer state on this rank."""
        return checkpoint.state_bytes(self)

    @classmethod
    def state_bytes_per_parameter(cls, **hyperparameters: Any) -> float:
        """Bytes of state for a float32 weight in a large matrix, with these hyperparameters and ``state_storage``.

        Raises:
            TypeError: an unknown hyperparameter.
        """
        options = {h.name: h.default for h in cls.hypers}
        keeping = Keeping(hyperparameters.pop("state_storage", getattr(cls, "state_storage", "float32")))
        if unknown := sorted(set(hyperparameters) - set(options)):
            raise TypeError(f"{cls.__name__} has no argument {unknown[0]!r}; it has {sorted(options)}")
        weight = torch.empty(1024, 1024, device="meta")
        kept = keeping.of(cls.recipe(options | hyperparameters).for_shape(weight.shape), weight)
        tensors = [t for one in kept for t in one.new(weight).values() if t.ndim]
        return round(sum(t.nbytes for t in tensors) / weight.numel(), 3)

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim``; states of parameters that no group lists any more are left out."""
        return checkpoint.save(self, super().state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this method, or of torch.optim where names, shapes and options fit.

        Raises:
            ValueError: another method, other groups, shapes or options; names the mismatch and changes nothing.
        """
        checkpoint.load(self, state_dict)

    def forget_plans(self, stepped: bool) -> None:
        """Plan anew at the next step: the state is another one."""
        self._planner, self._stepped = Planner(), stepped

    def __getstate__(self) -> dict[str, Any]:
        kept = ("defaults", "param_groups", "state", "execution", "check_finite", "average_loss", "_rules", "_stepped")
        return {name: self.__dict__[name] for name in kept if name in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._planner, self._taps, self.is_released = Planner(), None, False
        super().__setstate__(state)

    def __copy__(self) -> Self:
        raise TypeError("copy.copy would share state between two optimizers; use copy.deepcopy")
