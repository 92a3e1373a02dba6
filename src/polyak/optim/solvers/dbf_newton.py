"""DBF-Newton: a Kalman-type filter of gradients and Hessians lends momentum to the stochastic Newton method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from polyak.declare import NON_NEGATIVE, OPEN_UNIT, POSITIVE, Argument, Declared, Interval, Paper
from polyak.memory import flat, unflat
from polyak.optim.solvers.derivatives import gradient_and_hessian

LARGEST = 5_000
"""Most entries that all parameters may have together: matrices of their square are kept and inverted."""
FLOOR = 1e-12
"""A singular Hessian is lifted until its smallest eigenvalue is this share of its largest diagonal entry."""
ROUNDING = 1e-4
"""Share of its largest entry by which a Hessian that was computed in float32 may be off symmetry, and a tenth of it by
which a zero eigenvalue may be negative."""


class Belief(NamedTuple):
    """What the filter knows of the gradient: ``mean`` (d) and ``covariance`` (d, d)."""

    mean: Tensor
    covariance: Tensor

    def direction(self, ridge: float = 1e-12) -> Tensor:
        """The filtered Newton direction, ``-(covariance + ridge * I)^-1 mean``."""
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        solved: Tensor = torch.linalg.solve(self.covariance + ridge * eye, self.mean)
        return -solved

    def memory(self, alpha: float, beta: float) -> Tensor:
        """What the next step keeps of this direction, ``M = alpha (alpha^2 C + beta I)^-1 C`` of the covariance C.

        Up to ridges the directions follow a heavy ball, ``d <- M d - Q^-1 f``.
        """
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        kept: Tensor = torch.linalg.solve(alpha**2 * self.covariance + beta * eye, self.covariance)
        return alpha * kept


def filter_step(
    belief: Belief | None, f: Tensor, q: Tensor, alpha: float = 0.9, beta: float = 0.2, eig_tol: float = 1e-6
) -> Belief:
    """One step of the discriminative Kalman filter, on a gradient and a Hessian that plays its covariance.

    ::

        m-, P- <- alpha * m,  alpha^2 * C + beta * I
        unless Q^-1 - S^-1 > eig_tol:  Q <- (Q^-1 + S^-1)^-1     (S = beta / (1 - alpha^2) * I)
        C <- (P-^-1 + Q^-1 - S^-1)^-1
        m <- C (P-^-1 m- + Q^-1 f)

    Args:
        belief: what was known before; None takes ``(f, q)`` as they are.
        f: gradient, (d).
        q: Hessian, (d, d), symmetric and positive definite; a singular one is lifted to a smallest eigenvalue of 1e-12
            of its largest diagonal entry.
        alpha: retention of the gradient, in (0, 1).
        beta: variance that it gains in a step, above 0; of the size of the Hessian.
        eig_tol: what eigenvalues must exceed for the Hessian to be taken as it is.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, a Hessian that is not symmetric or has a
            negative eigenvalue, alpha or beta out of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be in (0, inf), got {beta!r}")
    q = _checked(f, q)
    if belief is None:
        return Belief(f, q)
    if belief.mean.shape != f.shape:
        raise ValueError(f"f must have the shape of the mean, {tuple(belief.mean.shape)}, got {tuple(f.shape)}")
    eye = torch.eye(len(f), dtype=f.dtype, device=f.device)
    known = torch.cholesky_inverse(torch.linalg.cholesky(alpha**2 * belief.covariance + beta * eye))
    stationary = (1 - alpha**2) / beta * eye
    precision = torch.cholesky_inverse(torch.linalg.cholesky(q))
    if not bool((torch.linalg.eigvalsh(precision - stationary) > eig_tol).all()):
        precision = precision + stationary
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(known + precision - stationary))
    covariance = (covariance + covariance.mT) / 2
    return Belief(covariance @ (known @ (alpha * belief.mean) + precision @ f), covariance)


def _checked(f: Tensor, q: Tensor) -> Tensor:
    """The Hessian, symmetric and positive definite."""
    if f.ndim != 1 or q.shape != (len(f), len(f)):
        raise ValueError(f"f must be a vector (d) and q a matrix (d, d), got {tuple(f.shape)} and {tuple(q.shape)}")
    for name, value in (("gradient", f), ("Hessian", q)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"the batch {name} is not finite")
    size = float(q.abs().amax()) if len(f) else 0.0
    if float((q - q.mT).abs().amax()) > ROUNDING * size:
        raise ValueError("the batch Hessian is not symmetric")
    q = (q + q.mT) / 2
    smallest = float(torch.linalg.eigvalsh(q)[0])
    if size == 0 or smallest < -ROUNDING / 10 * size:
        raise ValueError(f"the batch Hessian is not positive definite (eigenvalue {smallest:.3g}); add damping")
    floor = FLOOR * float(q.diagonal().amax())
    return q if smallest >= floor else q + (floor - smallest) * torch.eye(len(f), dtype=q.dtype, device=q.device)


class DBFNewton(Declared, torch.optim.Optimizer):
    """Filtered stochastic Newton (Burkhart, arXiv:2104.12949), for small log-convex models.

    ::

        f, Q <- gradient and Hessian of the batch
        m, C <- filter_step((m, C), f, Q)   (at first f, Q)
        d <- -(C + ridge * I)^-1 m
        s <- the first of 1, 1/2, 1/4, ... with loss(p + s * d) - loss(p) <= armijo_c * s * <d, f>, or the last
        p <- p + s * d

    Its losses are negative log-likelihoods: least squares, logistic regression, exponential families, whose Hessian is
    positive definite. All parameters are one vector of at most 5,000 entries, so of a network take the last layer. The
    filter pays where the Hessian of a batch is noisy, not where a batch is much larger than the vector.

    ``step(closure)`` wants a closure that returns the loss of one batch, without ``backward()``; it is called again for
    every step size that is tried. ``p.grad`` is neither read nor written. The belief is kept in ``param_groups[0]`` in
    float64, whatever the parameters are in.

    Differs from the authors' code: a singular Hessian (a batch smaller than the vector) is lifted by 1e-12 of its
    largest diagonal entry instead of failing; an indefinite one is refused, or made definite by ``damping``.

    Raises:
        ValueError: an argument outside what is allowed, more than one group, more than 5,000 entries.
    """

    slug = "dbf_newton"
    paper = Paper(
        "Discriminative Bayesian filtering lends momentum to the stochastic Newton method for minimizing log-convex "
        "functions", 2021, "2104.12949",
    )  # fmt: skip
    vectors = ["dbf-newton", "dbf-newton-filter"]

    params: Annotated[ParamsT, Argument("parameters, named parameters or one group of them")]
    alpha: Annotated[float, OPEN_UNIT, "retention of the gradient between steps"] = 0.9
    beta: Annotated[float, POSITIVE, "variance that the gradient gains in a step, of the size of the Hessian"] = 0.2
    _: KW_ONLY
    ridge: Annotated[float, NON_NEGATIVE, "added to the diagonal that is inverted for the direction"] = 1e-12
    eig_tol: Annotated[float, NON_NEGATIVE, "eigenvalues above it make a Hessian small enough to be taken as it is"] = (
        1e-6
    )
    armijo_c: Annotated[float, OPEN_UNIT, "share of the predicted decrease that a step must reach"] = 0.95
    max_backtracks: Annotated[int, Interval(1, 60), "step sizes that are tried"] = 5
    damping: Annotated[float, NON_NEGATIVE, "added to the diagonal of the Hessian"] = 0.0

    def _begin(self, values: dict[str, Any]) -> None:
        params = values.pop("params")
        torch.optim.Optimizer.__init__(self, params, {**values, "method": self.slug, "mean": None, "covariance": None})

    def _elsewhere(self, name: str) -> str:
        return f"DBFNewton has no attribute {name!r}: it is in optimizer.param_groups[0]"

    def _set_field(self, field: Any, value: Any) -> None:
        raise AttributeError(self._elsewhere(field.name))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the only group; refuse another, and what cannot be one vector."""
        if self.param_groups:
            raise ValueError("DBFNewton sees all parameters as one vector: there can be one group alone")
        for h in self.hypers:
            h.check({**self.defaults, **param_group}[h.name], "DBFNewton")
        super().add_param_group(param_group)
        tensors = self.param_groups[0]["params"]
        size = sum(p.numel() for p in tensors)
        kinds = {(p.device, p.dtype) for p in tensors}
        problem = ""
        if size > LARGEST:
            problem = f"keeps a matrix of (entries)^2: {size:,} entries are more than {LARGEST:,}; take a last layer"
        elif len(kinds) != 1 or tensors[0].dtype not in (torch.float32, torch.float64):
            problem = f"needs parameters of one device, all float32 or all float64, got {sorted(map(str, kinds))}"
        if problem:
            self.param_groups.pop()
            raise ValueError(f"DBFNewton {problem}")

    def belief(self) -> Belief | None:
        """The filter's mean and covariance; None before the first step."""
        group = self.param_groups[0]
        if group["mean"] is None:
            return None
        device = group["params"][0].device
        return Belief(group["mean"].to(device), group["covariance"].to(device))

    def diagnostics(self) -> dict[str, float]:
        """``step_length`` of the last step, and ``memory_radius``: the spectral radius of :meth:`Belief.memory`."""
        group, belief = self.param_groups[0], self.belief()
        if belief is None:
            return {}
        radius = torch.linalg.eigvals(belief.memory(group["alpha"], group["beta"])).abs().amax()
        return {"step_length": group["step_length"], "memory_radius": float(radius)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this method.

        Raises:
            ValueError: another method's, or one of other sizes; nothing has changed then.
        """
        saved = state_dict["param_groups"][0]
        if saved.get("method") != self.slug:
            raise ValueError(f"DBFNewton cannot load a state of {saved.get('method', 'another optimizer')!r}")
        size = sum(p.numel() for p in self.param_groups[0]["params"])
        if saved["mean"] is not None and len(saved["mean"]) != size:
            raise ValueError(f"DBFNewton: the state is of {len(saved['mean'])} entries, the parameters have {size}")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, *, hessian: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Perform one step; returns the loss before it.

        Args:
            closure: returns the loss of the batch; it neither calls ``backward()`` nor draws other numbers each time.
            hessian: the Hessian of that loss at the present parameters, (d, d); None computes it in d backward passes.

        Raises:
            TypeError: no closure, or one that returns no scalar tensor.
            ValueError: loss, gradient or Hessian not finite, or the loss after the shortest step; Hessian not positive
                definite. Nothing has changed then.
            RuntimeError: the closure called ``backward()``.
        """
        if closure is None:
            raise TypeError("DBFNewton.step() needs a closure that returns the loss of the batch")
        group = self.param_groups[0]
        params: list[Tensor] = group["params"]
        loss, f, q = _derivatives(closure, params, hessian)
        if group["damping"]:
            q = q + group["damping"] * torch.eye(len(f), dtype=q.dtype, device=q.device)
        belief = filter_step(self.belief(), f, q, group["alpha"], group["beta"], group["eig_tol"])
        length = self._search(closure, loss, f, belief.direction(group["ridge"]))
        group.update(mean=belief.mean, covariance=belief.covariance, step_length=length)
        return loss

    def _search(self, closure: Callable[[], Tensor], loss: Tensor, f: Tensor, direction: Tensor) -> float:
        """Move along the direction, as far as Armijo's test lets; returns the step length."""
        group = self.param_groups[0]
        params: list[Tensor] = group["params"]
        before = [p.detach().clone() for p in params]
        if not math.isfinite(float(loss)):
            raise ValueError(f"the batch loss is {float(loss)}")
        start, slope = flat(before).to(f.dtype), float(direction @ f)
        length = tried = 1.0
        try:
            for k in range(group["max_backtracks"]):
                length = 0.5**k
                for p, value in zip(params, unflat(start + length * direction, params), strict=True):
                    p.copy_(value)
                tried = float(closure())
                if tried - float(loss) <= group["armijo_c"] * length * slope:
                    break
            if not math.isfinite(tried):
                raise ValueError(f"the batch loss is {tried} after the shortest step, of length {length}")
        except BaseException:
            for p, value in zip(params, before, strict=True):
                p.copy_(value)
            raise
        return length


def _derivatives(
    closure: Callable[[], Tensor], params: list[Tensor], hessian: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian; the last two in float64."""
    with torch.enable_grad():
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise TypeError(f"DBFNewton: the closure must return the loss, one number with its graph, got {loss!r}")
        try:
            f, found = gradient_and_hessian(loss.reshape(()), params, hessian is None)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError("DBFNewton: the closure must return the loss without calling backward()") from error
    q = found if hessian is None else hessian.detach()
    assert q is not None
    return loss.detach(), f.double(), q.to(f.device, torch.float64)
