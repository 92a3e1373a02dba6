"""Gradient release: each parameter steps as soon as its gradient is there, and lets it go.

The gradients of a model are then never all in memory at once, and the step runs while the backward pass goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyak.optim.engine import diagnose, views
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.keeping import Keeping
from polyak.optim.engine.member import is_sharded, name_of
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.engine.plan import GroupPlan
from polyak.optim.engine.rule import Options

_AGAIN = "call remove() and release again"


class _Alone:
    """One parameter of an optimizer, as a plan sees an optimizer: options and state are the optimizer's."""

    def __init__(self, optimizer: Optimizer, index: int, i: int) -> None:
        self.optimizer, self.index, self.i = optimizer, index, i
        self.param: Tensor = optimizer.param_groups[index]["params"][i]
        self.param_groups: list[dict[str, Any]] = [{}]
        self.plan: GroupPlan | None = None

    @property
    def state(self) -> Any:
        """The optimizer's."""
        return self.optimizer.state

    def chain_of(self, group: Options) -> Chain:
        """The optimizer's."""
        return self.optimizer.chain_of(group)

    def keeping_of(self, group: Options) -> Keeping:
        """The optimizer's."""
        return self.optimizer.keeping_of(group)

    def salt_of(self, index: int, i: int) -> int:
        """The optimizer's."""
        return self.optimizer.salt_of(self.index, self.i)

    def read_group(self) -> None:
        """Take the options from the group that lists the parameter now.

        Raises:
            RuntimeError: if no group does, or the groups went on to another method.
        """
        self._find()
        group, own = self.optimizer.param_groups[self.index], self.param_groups[0]
        _check_owner(self.optimizer, group)
        own.clear()
        own.update(group)
        own["params"] = [self.param]
        own["param_names"] = [name_of(group, self.index, self.i)]

    def _find(self) -> None:
        """Where the parameter stands now: groups are moved, and made anew when a state is loaded."""
        groups = self.optimizer.param_groups
        listed = groups[self.index]["params"] if self.index < len(groups) else []
        if self.i < len(listed) and listed[self.i] is self.param:
            return
        for self.index, group in enumerate(groups):
            for self.i, p in enumerate(group["params"]):
                if p is self.param:
                    return
        raise RuntimeError(f"release_gradients: the optimizer no longer has a released parameter; {_AGAIN}")

    def current_plan(self) -> GroupPlan:
        """A plan that describes the parameter as it is now, with its gradient read."""
        chosen, grads = self.optimizer.chosen()[0], [self.param.grad]
        if self.plan is None or not self.plan.owns(self.state) or not self.plan.refresh(chosen, grads):
            self.plan = GroupPlan(self, 0, chosen, grads)
            self.plan.divide()
            self.plan.bind()
        return self.plan


def _check_owner(optimizer: Optimizer, group: Options) -> None:
    """Raise ``RuntimeError`` if the group is driven by another method now."""
    if group["method"] != (before := optimizer.defaults["method"]):
        raise RuntimeError(
            f"release_gradients: {before!r} was released, the method is {group['method']!r} now; {_AGAIN}"
        )


class Released:
    """What :func:`release_gradients` returns: gradients are released until :meth:`remove`."""

    def __init__(self, optimizer: Optimizer, clip_value: float | None) -> None:
        self._optimizer, self._clip_value = optimizer, clip_value
        self._waits = False
        optimizer.is_released = True
        self._handles = [optimizer.register_step_pre_hook(self._check_same)]
        for index, group in enumerate(optimizer.param_groups):
            for i, p in enumerate(group["params"]):
                if p.requires_grad:
                    alone = _Alone(optimizer, index, i)
                    self._handles.append(p.register_post_accumulate_grad_hook(self._hook(alone)))

    def _check_same(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """A switch to the same method leaves the groups as they were, and hands on what listens to steps."""
        if optimizer is not self._optimizer:
            raise RuntimeError(f"release_gradients: gradients were released to another optimizer; {_AGAIN}")

    def _hook(self, alone: _Alone) -> Any:
        def step(p: Tensor) -> None:
            if not self._waits and p.grad is not None:
                self._step(alone, p.grad)
                p.grad = None

        return step

    def _step(self, alone: _Alone, grad: Tensor) -> None:
        """As ``optimizer.step()``, with the one gradient there is, and refusing what it refuses."""
        if views.is_predicted(self._optimizer):
            raise RuntimeError("release_gradients: the weights are predicted ones; restore() them before the pass")
        alone.read_group()
        diagnose.refuse_sparse(alone.param_groups, [[grad]])
        if self._clip_value is not None:
            grad.clamp_(-self._clip_value, self._clip_value)
        if self._optimizer.check_finite:
            diagnose.refuse_non_finite(alone.param_groups, [[grad]], "it was not stepped")
        plan = alone.current_plan()
        try:
            self._optimizer.advance([plan])
        finally:
            plan.let_go()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Backward passes in this block add gradients up and step nothing; the next one after it steps."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    def remove(self) -> None:
        """Step in ``optimizer.step()`` again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizer.is_released = False


def release_gradients(
    optimizer: Optimizer, model: nn.Module | None = None, *, clip_value: float | None = None
) -> Released:
    """Let each parameter step in the backward pass, as soon as its gradient is there, and free the gradient.

    The loop stays as it is: ``optimizer.step()`` then finds no gradients and does nothing, schedulers and checkpoints
    work, and a state may be loaded. Parameters that are added to the optimizer later are not released. A pass that is
    refused half-way, for a sparse or, with ``check_finite``, a non-finite gradient, has stepped what came before it.

    It cannot be combined with what needs gradients or old weights after the pass: a GradScaler, clipping by norm,
    ``diagnostics()``, DistributedDataParallel (which averages the gradients only then), a second pass through a graph
    that was kept, reentrant checkpointing of a weight that several segments share. Nor with passes at predicted
    weights, and several passes a step add up only in ``accumulate()``. After :func:`polyak.optim.switch` the hooks
    refuse: call ``remove()`` and release again.

    Args:
        optimizer: any method or chain that needs no sum over all tensors.
        model: if given, all trainable parameters of the optimizer must be its own; a safeguard against the wrong one.
        clip_value: clip each gradient's elements to [-clip_value, clip_value] before its step, > 0.

    Returns:
        A handle with ``accumulate()`` and ``remove()``.

    Raises:
        ValueError: if a chain needs all gradients at once (with the reason), parameters are sharded and their sums
            or checks cross ranks, parameters of the optimizer are none of the model's, or it is released already.
    """
    if clip_value is not None and not clip_value > 0:
        raise ValueError(f"release_gradients: clip_value must be positive, got {clip_value!r}")
    if optimizer.is_released:
        raise ValueError("release_gradients: the gradients of this optimizer are released already; remove() that first")
    own = type(optimizer)
    if own.around_step is not Optimizer.around_step or own._advance is not Optimizer._advance:
        raise ValueError(f"release_gradients: {own.__name__} looks at all gradients before or after a step")
    known = None if model is None else {id(p) for p in model.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        chain = optimizer.chain_of(group)
        questions = chain.questions(group)
        for q in questions:
            if q.kind == "total":
                raise ValueError(f"release_gradients: {q.asker} of group {index} needs all gradients at once")
        if chain.reads_steps:
            raise ValueError(
                f"release_gradients: group {index} reads the optimizer's number of steps, and there is none"
            )
        if chain.inputs:
            raise ValueError(f"release_gradients: group {index} reads {list(chain.inputs)}, known only after the pass")
        for i, p in enumerate(group["params"]):
            if known is not None and p.requires_grad and id(p) not in known:
                raise ValueError(f"release_gradients: parameter {i} of group {index} is none of the model's")
            if optimizer.check_finite and is_sharded(p):
                raise ValueError(f"release_gradients: check_finite of parameter {i} of group {index} crosses ranks")
            if questions and is_sharded(p):
                raise ValueError(f"release_gradients: sums of parameter {i} of group {index} cross ranks")
    return Released(optimizer, clip_value)


__all__ = ["Released", "release_gradients"]
