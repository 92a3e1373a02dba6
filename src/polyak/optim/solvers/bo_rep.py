"""BO-REP: bilevel optimization whose upper level moves by normalized momentum of a hypergradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import (
    COUNT,
    HALF_OPEN_UNIT,
    NON_NEGATIVE,
    POSITIVE,
    Argument,
    Choice,
    Declared,
    Field,
    Interval,
    Lr,
    Paper,
    Range,
)
from polyak.memory import ema
from polyak.optim.engine.foreign import refuse_foreign
from polyak.optim.solvers.closures import Closure, check_finite, gradient_of, loss_of

Tensors = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
OF_OUTER, OF_INNER = (
    ("beta", "eps", "normalize"),
    ("nu", "interval", "inner_steps", "radius", "refine_steps", "average"),
)
PARTS = 3
"""Parts of the refinement; from one to the next the step halves and the ball shrinks by the root of 2."""
EXPLODED = 1e6
"""``z`` counts as exploded at so many times the gradient that it is to be the solution for."""


class BORep(Declared, torch.optim.Optimizer):
    """BO-REP ("Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis").

    ::

        minimize over x:  f(x, y*(x)),  y*(x) = argmin over y of g(x, y)
        every interval-th step:  inner_steps times  y <- project(y - lr_inner * grad_y g(x, y));  y <- their average
        z <- z - nu * (H_yy g(x, y) z - grad_y f(x, y))
        h <- grad_x f(x, y) - grad_x <grad_y g(x, y), z>
        m <- beta * m + (1 - beta) * h
        x <- x - lr_outer * m / (|m| + eps)

    For upper losses whose curvature grows with their gradient, as recurrent nets have it: only the direction of the
    momentum counts, by its norm over all outer parameters. ``project`` holds ``y`` in the ball of ``radius`` around
    where the inner steps began. The memory ``z``, one number for each inner one, follows the solution of a linear
    system; Hessians enter as products with a vector alone.

    ``step(upper, lower)`` takes two closures that return losses and do not call ``backward()``; ``p.grad`` is neither
    read nor written. ``param_groups[0]`` holds the outer parameters and ``[1]`` the inner ones, so that schedulers
    drive both rates. ``lower`` must be twice differentiable: recurrent nets on CUDA are under
    ``torch.backends.cudnn.flags(enabled=False)``.

    Differs from the authors' code (arXiv:2401.09587 follows): iterates of the inner steps are averaged unless
    ``average=False``, their gradients do not pile up, and the cross derivative is that of the lower loss on a batch of
    ``lower`` and not of ``upper``, unless ``cross`` is given. The refinement of ``y`` before the first step, absent in
    the code, has constants of ours: ``refine_steps`` in three parts, from one to the next the rate is halved and the
    ball shrunk by the root of 2. Without it the first step has ordinary inner steps.

    Raises:
        TypeError: a parameter that is no tensor.
        ValueError: an argument outside what is allowed, no outer or inner parameter, one that is frozen or in both.
    """

    slug = "bo_rep"
    paper = Paper(
        "Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis", 2024, "2401.09587"
    )
    vectors = ["bo-rep"]

    outer: Annotated[Tensors, Argument("the parameters of the upper level, x")]
    inner: Annotated[Tensors, Argument("the parameters of the lower level, y")]
    lr_outer: Annotated[Lr, Range(1e-4, 1e-1), "length of a step of x"] = 1e-2
    lr_inner: Annotated[Lr, Range(1e-3, 1.0), "learning rate of y"] = 1e-2
    beta: Annotated[float, HALF_OPEN_UNIT, Choice((0.9, 0.99)), "retention of the momentum"] = 0.9
    nu: Annotated[float, POSITIVE, Range(1e-3, 1.0), "rate of z, below 2 over the largest eigenvalue of H_yy g"] = 1e-2
    interval: Annotated[int, COUNT, "steps from one update of y to the next"] = 2
    inner_steps: Annotated[int, COUNT, "steps of y in an update"] = 3
    _: KW_ONLY
    radius: Annotated[float, Interval(0.0, math.inf, low_open=True), "radius of the ball that an update stays in"] = (
        math.inf
    )
    refine_steps: Annotated[int, NON_NEGATIVE, "steps of y before the first step, in place of an update"] = 0
    eps: Annotated[float, NON_NEGATIVE, "added to the norm of the momentum"] = 1e-10
    average: Annotated[bool, "average the iterates of an update, instead of taking the last"] = True
    normalize: Annotated[bool, "divide the momentum by its norm"] = True

    def _begin(self, values: dict[str, Any]) -> None:
        groups: list[dict[str, Any]] = []
        for role, names in (("outer", OF_OUTER), ("inner", OF_INNER)):
            options = {"lr": values[f"lr_{role}"], **{name: values[name] for name in names}}
            groups.append({"params": _trained(values[role], role), "role": role, **options})
        groups[0]["step"] = 0
        torch.optim.Optimizer.__init__(self, groups, {})

    def _elsewhere(self, name: str) -> str:
        return f"BORep has no attribute {name!r}: options are in optimizer.param_groups, of x first, then of y"

    def _set_field(self, field: Field, value: Any) -> None:
        raise AttributeError(self._elsewhere(field.name))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the two groups of the constructor; refuse others."""
        if len(self.param_groups) == 2:
            raise ValueError("BORep has two groups, the outer and the inner parameters, and takes no other")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this method.

        Raises:
            ValueError: another optimizer's, or one of other parameters; names it, and nothing has changed.
        """

        def wanted(saved: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...]]:
            if not state_dict["param_groups"][0]["step"]:
                return {}
            return {"exp_avg" if saved["role"] == "outer" else "z": tuple(p.shape)}

        refuse_foreign(self, state_dict, wanted)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, upper: Closure, lower: Closure, cross: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Perform one step of x; returns the upper loss before it.

        Args:
            upper: returns ``f`` on a validation batch; called once.
            lower: returns ``g`` on a training batch, better another one at each call; called for each inner step, for
                the Hessian and for the cross derivative.
            cross: returns the loss whose cross derivative enters; ``lower`` if None.

        Raises:
            TypeError: a closure that returns no tensor.
            ValueError: a loss that is not one number with a graph; a lower loss whose gradient by the inner parameters
                depends on nothing.
            RuntimeError: a gradient that is not finite, or ``z`` explodes because ``nu`` is too large; x, y and all
                memories are then as they were before.
        """
        x, y = self.param_groups
        k = x["step"]
        before: list[Tensor] = []
        try:
            if k % y["interval"] == 0:
                before = [p.clone() for p in y["params"]]
                self._move_inner(lower, refine=k == 0)
            loss, z, h = self._hypergradient(upper, lower, cross or lower)
        except BaseException:
            # without an update nothing was kept, and nothing has moved
            for p, value in zip(y["params"], before, strict=False):
                p.copy_(value)
            raise
        for p, value in zip(y["params"], z, strict=True):
            self.state[p]["z"] = value
        self._move_outer(h)
        x["step"] = k + 1
        return loss

    def _move_inner(self, lower: Closure, refine: bool) -> None:
        """Update y, or refine it before the first step."""
        y = self.param_groups[1]
        if not (refine and y["refine_steps"]):
            self._descend(lower, y["inner_steps"], y["lr"], y["radius"])
            return
        for part in range(PARTS):
            steps = y["refine_steps"] // PARTS + (part < y["refine_steps"] % PARTS)
            self._descend(lower, steps, y["lr"] / 2**part, y["radius"] / math.sqrt(2) ** part)

    def _descend(self, lower: Closure, steps: int, lr: float, radius: float) -> None:
        """Projected gradient steps of y, and their average."""
        params, average = self.param_groups[1]["params"], self.param_groups[1]["average"]
        center = [p.clone() for p in params]
        mean = [torch.zeros_like(p) for p in params] if average else []
        for t in range(1, steps + 1):
            for p, g in zip(params, gradient_of(loss_of(lower, "lower"), params, "lower"), strict=True):
                p.sub_(lr * g)
            if math.isfinite(radius):
                _project(params, center, radius)
            for m, p in zip(mean, params, strict=average):
                m.copy_(ema(m, p, 1 / t))
        if steps and average:
            for p, m in zip(params, mean, strict=True):
                p.copy_(m)

    def _hypergradient(
        self, upper: Closure, lower: Closure, cross: Closure
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The upper loss, the new z, and the hypergradient."""
        x, y = (group["params"] for group in self.param_groups)
        loss = loss_of(upper, "upper")
        found = gradient_of(loss, [*x, *y], "upper")
        z = self._solved(lower, found[len(x) :])
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss_of(cross, "lower"), y, create_graph=True, materialize_grads=True)
            product = sum(((a * b).sum() for a, b in zip(slopes, z, strict=True)), start=z[0].new_zeros(()))
        crossed = gradient_of(product, x, "lower") if product.requires_grad else [torch.zeros_like(p) for p in x]
        h = [a - b for a, b in zip(found, crossed, strict=False)]
        check_finite(h, "the hypergradient")
        return loss.detach(), z, h

    def _solved(self, lower: Closure, right: Sequence[Tensor]) -> list[Tensor]:
        """One step of z towards the solution of H z = right."""
        group = self.param_groups[1]
        y, nu = group["params"], group["nu"]
        z = [self.state[p]["z"] if "z" in self.state.get(p, {}) else torch.zeros_like(p) for p in y]
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss_of(lower, "lower"), y, create_graph=True, materialize_grads=True)
            check_finite(slopes, "the gradient of lower")
            pairs = [(s, v) for s, v in zip(slopes, z, strict=True) if s.requires_grad]
            if not pairs:
                raise ValueError(
                    "lower must be twice differentiable by the inner parameters: its gradient depends on nothing"
                )
            hz = torch.autograd.grad([s for s, _ in pairs], y, [v for _, v in pairs], materialize_grads=True)
        new = [v - nu * (hv - b) for v, hv, b in zip(z, hz, right, strict=True)]
        curvature = sum(float((v * hv).sum()) for v, hv in zip(z, hz, strict=True))
        size = float(_norm(new))
        grows = nu * curvature > 2 * float(_norm(z)) ** 2
        if not math.isfinite(size) or (grows and size > EXPLODED * float(_norm(right))):
            raise RuntimeError(
                f"nu = {nu} is too large: z has grown to a norm of {size:.1e}; nu must be below 2 over the largest "
                "eigenvalue of the Hessian of the lower loss"
            )
        return new

    def _move_outer(self, h: Sequence[Tensor]) -> None:
        group = self.param_groups[0]
        momenta = []
        for p, g in zip(group["params"], h, strict=True):
            m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            momenta.append(m.copy_(ema(m, g, 1 - group["beta"])))
        size = float(_norm(momenta)) + group["eps"] if group["normalize"] else 1.0
        for p, m in zip(group["params"], momenta, strict=True):
            if size:
                p.sub_(group["lr"] / size * m)


def _trained(params: Tensors, role: str) -> list[Any]:
    """The parameters, with their names where they came so."""
    listed: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if not listed:
        raise ValueError(f"{role} must hold at least one parameter")
    for i, entry in enumerate(listed):
        p = entry[1] if isinstance(entry, tuple) else entry
        if not isinstance(p, Tensor):
            raise TypeError(f"{role}[{i}] must be a parameter, got {type(p).__name__}")
        if not p.requires_grad or not p.is_floating_point():
            raise ValueError(f"{role}[{i}] must be real, floating and require a gradient")
    return listed


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all entries; in float64, since squares of what has exploded overflow float32."""
    found: Tensor = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()
    return found


def _project(params: Sequence[Tensor], center: Sequence[Tensor], radius: float) -> None:
    """Pull all together back into the ball around the center."""
    away = [p - c for p, c in zip(params, center, strict=True)]
    size = float(_norm(away))
    if size > radius:
        for p, c, d in zip(params, center, away, strict=True):
            p.copy_(c + radius / size * d)
