"""STEP: N:M masks are learned with a second moment that was found before, and is frozen."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import Betas, Eps, Interval, Lr, Paper, Range, WeightDecay
from polyak.memory.averages import debias, ema
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.member import STEP as COUNTER
from polyak.optim.engine.member import holds_nothing, local, name_of
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.adaptive import corrections
from polyak.optim.vocabulary.sparse import GroupSize, Kept, SrLambda, can_be_masked, sr_ste
from polyak.optim.vocabulary.weight import decay, descend

Criterion = Literal["arithmetic", "geometric", "relative", "onebit"]
EpsMode = Literal["by_phase", "inside", "outside"]
PRECONDITION, MASKS = "precondition", "masks"
TINY = 1e-30
"""Added to a change before its logarithm."""
RELATIVE, ONEBIT = 0.5, 0.96
"""Thresholds of the two criteria that the paper compares with."""
Steps = Annotated[int | None, Interval(0, 2**53)]


@factory
def preconditioned_adam(
    frozen: bool = False, criterion: Criterion = "arithmetic", eps_mode: EpsMode = "by_phase"
) -> Rule:
    """Adam's direction, or with ``frozen`` that over the second moment of the last step at which it was not.

    Args:
        frozen: the second moment, and its bias correction, stay as they are.
        criterion: what of the second moment is summed up for the switch, see :class:`STEP`.
        eps_mode: eps inside the root, outside of it, or inside if ``frozen``.
    """
    inside = eps_mode == "inside" or (eps_mode == "by_phase" and frozen)

    def scalars(h: Options, t: int) -> dict[str, Any]:
        b1, b2 = h["betas"]
        fixed = corrections(b1, b2, t, "after") if not frozen else {"step": 1 / debias(float(b1), t)}
        return {"rate1": 1 - b1, "rate2": 1 - b2, "eps": h["eps"], **fixed}

    def over_root(m: Tensor, v: Tensor, root: Any, c: Context) -> Tensor:
        below = (v * (root * root) + c.eps).sqrt() if inside else v.sqrt() * root + c.eps
        u: Tensor = m * c.step / below
        return u

    def watched(before: Tensor, v: Tensor, c: Context) -> Tensor:
        term = {
            "arithmetic": lambda: (v - before).abs(),
            "geometric": lambda: ((v - before).abs() + TINY).log(),
            "relative": lambda: v * v,
            "onebit": lambda: v,
        }[criterion]()
        total: Tensor = c.sum(term)
        return total

    def learn(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        v = ema(s.exp_avg_sq, x.u * x.u, c.rate2)
        found = watched(s.exp_avg_sq, v, c)
        return x.but(u=over_root(m, v, c.root, c)), {"exp_avg": m, "exp_avg_sq": v, "watched": found}

    def stay(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.exp_avg, x.u, c.rate1)
        return x.but(u=over_root(m, s.exp_avg_sq, s.watched, c)), {"exp_avg": m}

    slots = (
        Slot("exp_avg", "average of the gradient", "signed"),
        Slot("exp_avg_sq", "average of its square, frozen with the switch", "positive"),
        Slot("watched", "what the switch waits for, of one tensor; then the bias correction of v*", shape="scalar"),
    )
    known = STEP.reads("betas", "eps")
    return Rule("frozen_adam" if frozen else "watched_adam", stay if frozen else learn, scalars, slots, known, True)


class STEP(Method):
    """STEP (Lu et al., arXiv:2302.01172): N:M sparsity, learned over a second moment that was found before.

    ::

        first, dense:   m, v as in Adam;  p <- p - lr * m^ / (sqrt(v^) + eps)
        then, masked:   g <- g + sr_lambda * (1 - P(p)) * p   (g is the gradient at P(p) * p)
                        m as in Adam, going on;  p <- p - lr * m^ / sqrt(v* + eps)
        P(p) keeps the n largest of each m consecutive inputs; v* is v^ of the last dense step
        (before each step: p <- p * (1 - lr * weight_decay))

    The model's forward pass multiplies by P(p), straight-through: :func:`polyak.optim.sparsify` chooses the layers,
    gives the groups, whose ``sparse`` weights take the decay of what is masked, and follows the phase. It changes by
    itself when the mean of the last ``1 / (1 - betas[1])`` values ``z`` falls below ``eps``; ``z`` is over all
    elements d of the model: "arithmetic" ``sum |v - v_before| / d``; "geometric" ``exp(sum log |v - v_before| / d)``.
    Or at once with "relative", when ``|v|_2`` changes by less than a half, or "onebit", when ``|v|_1`` of that many
    steps ago is 0.96 of today's. Never before ``t_min`` steps, always after ``t_max``; with ``total_steps`` these are
    a tenth and a half of it. ``z`` grows with the square of the loss's scale, so look at :meth:`switch_value`; with
    betas[1] = 0.999 the window is 1,000 steps, so give ``t_max`` where there are not many more. Reading ``z`` waits
    for the device once the window is full. ``sr_lambda=0`` is the plain straight-through estimator.

    ``n``, ``m`` and ``sr_lambda`` change nothing in the first phase, nor in groups that are not ``sparse``, and
    ``freeze_all`` nothing in those that are. ``criterion``, ``t_min``, ``t_max`` and ``total_steps`` change when the
    phase does, and nothing else.

    Differs from the paper, which has no code: eps is outside the root in the first phase, as torch has it
    (``eps_mode="inside"``: the paper's). Where it is outside in the second too, weights of dead units, whose v* is 0,
    take steps of ``lr * m^ / eps``, and training was seen to diverge.

    Raises:
        ValueError: an argument outside what is allowed, ``n >= m``, ``t_min > t_max``, or a ``sparse`` weight whose
            inputs ``m`` does not divide.
    """

    slug = "step"
    family = "sparse"
    paper = Paper("STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition", 2023, "2302.01172")
    vectors = ["torch.optim.AdamW"]
    evidence = "own transcription"

    lr: Annotated[Lr, Range(1e-4, 3e-2)] = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Annotated[Eps, "added to the denominator, and what z falls below"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    n: Kept = 2
    m: GroupSize = 4
    sr_lambda: Annotated[SrLambda, Range(1e-5, 1e-3)] = 2e-4
    sparse: Annotated[bool, "the weights are masked in the forward pass once the phase has changed"] = False
    freeze_all: Annotated[bool, "freeze the second moment of groups that are not sparse, too"] = True
    criterion: Annotated[Criterion, "what is waited for"] = "arithmetic"
    t_min: Annotated[Steps, "steps before which the phase does not change"] = None
    t_max: Annotated[Steps, "steps after which the phase has changed"] = None
    total_steps: Annotated[Steps, "steps of the training, of which t_min is a tenth and t_max a half"] = None
    eps_mode: Annotated[EpsMode, "eps outside the root and then inside, or always in one place"] = "by_phase"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        frozen = options.get("phase", PRECONDITION) == MASKS and (options["sparse"] or options["freeze_all"])
        masked = frozen and options["sparse"]
        penalty = (sr_ste(options["n"], options["m"]),) if masked else ()
        base = preconditioned_adam(frozen, options["criterion"], options["eps_mode"])
        return chain(decay("decoupled"), *penalty, base, descend())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it is in the phase of the others."""
        phase = self.param_groups[0]["phase"] if self.param_groups else PRECONDITION
        first: dict[str, Any] = {} if self.param_groups else {"steps": 0, "switched_at": None, "window": []}
        super().add_param_group({"phase": phase, **first, **param_group})

    def check_options(self, group: Options) -> None:
        """What is masked can be, and the bounds of the switch are in order."""
        n, m = group["n"], group["m"]
        if n >= m:
            raise ValueError(f"STEP: n must be smaller than m = {m}, got {n}: nothing would be masked")
        least, most = _bounds(group)
        if most is not None and least > most:
            raise ValueError(f"STEP: t_min must be at most t_max = {most}, got {least}")
        if group.get("phase", PRECONDITION) not in (PRECONDITION, MASKS):
            raise ValueError(f"STEP: phase must be {PRECONDITION!r} or {MASKS!r}, got {group['phase']!r}")
        if not group["sparse"]:
            return
        if m & (m - 1):
            self.advise(f"m = {m} is no power of two, which no hardware wants")
        listed = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for i, entry in enumerate(listed):
            name, p = entry if isinstance(entry, tuple) else (f"parameter {i}", entry)
            if isinstance(p, Tensor) and not can_be_masked(p.shape, m):
                raise ValueError(
                    f"STEP: the inputs of {name} of shape {tuple(p.shape)} do not fall into groups of m = {m}; "
                    "put it in a group with sparse=False"
                )

    @property
    def phase(self) -> str:
        """``"precondition"``, then ``"masks"``."""
        return str(self.param_groups[0]["phase"])

    def switch_value(self) -> float | None:
        """What is compared with the threshold: the mean of ``z`` over the window; None until it is full."""
        first = self.param_groups[0]
        return _value(_numbers(first["window"]), first["criterion"], _length(first))

    def start_masks(self) -> None:
        """Change the phase now.

        Raises:
            RuntimeError: it has changed already.
        """
        first = self.param_groups[0]
        if first["phase"] == MASKS:
            raise RuntimeError(f"STEP: the masks have started already, after step {first['switched_at']}")
        roots = [
            (self.state[p]["watched"], 1 / math.sqrt(debias(float(group["betas"][1]), int(self.state[p][COUNTER]))))
            for group in self.param_groups
            for p in group["params"]
            if "watched" in self.state.get(p, {}) and self._has_stepped(p)
        ]
        for group in self.param_groups:
            group["phase"] = MASKS
        for watched, root in roots:
            watched.fill_(root)
        first["switched_at"], first["window"] = first["steps"], []

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer; what the switch waits for is read from the device."""
        saved = super().state_dict()
        first, *others = saved["param_groups"]
        return {**saved, "param_groups": [{**first, "window": _numbers(first["window"])}, *others]}

    def _advance(self, loss: float | Tensor | None) -> None:
        if self.phase == MASKS:
            self._refuse_unprepared()
        super()._advance(loss)
        if not self._stepped:  # what asks for the state alone is no step
            return
        self.param_groups[0]["steps"] += 1
        if self.phase == PRECONDITION:
            self._watch()

    def _has_stepped(self, p: Tensor) -> bool:
        """Whether a weight has a second moment of its own; a state alone may be one that a checkpoint asked for."""
        state = self.state.get(p, {})
        return "exp_avg_sq" in state and float(state.get(COUNTER, 0.0)) > 0

    def _refuse_unprepared(self) -> None:
        for index, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                frozen = group["sparse"] or group["freeze_all"]
                if frozen and p.grad is not None and not self._has_stepped(p):
                    raise RuntimeError(
                        f"STEP: {name_of(group, index, i)} has its first gradient after the masks have started, and "
                        "so no second moment to divide by; nothing was stepped"
                    )

    @torch.no_grad()
    def _watch(self) -> None:
        first = self.param_groups[0]
        length, criterion = _length(first), first["criterion"]
        parts = [(p, local(state["watched"])) for p, state in self.state.items() if "watched" in state]
        if any(holds_nothing(part) for _, part in parts):
            return
        z = _summed(parts, criterion)
        # on another device they are read, all at once, when they are needed
        first["window"] = [*first["window"], float(z) if z.device.type == "cpu" else z][-length:]
        least, most = _bounds(first)
        due = first["steps"] >= least and len(first["window"]) >= length
        if due:
            first["window"] = _numbers(first["window"])
            due = _is_due(first["window"], criterion, length, first["eps"])
        if due or (most is not None and first["steps"] >= most):
            self.start_masks()


def _summed(parts: list[tuple[Tensor, Tensor]], criterion: Criterion) -> Tensor:
    """``z`` of this step; then the tensors' parts are as if nothing changed, for steps that leave them out."""
    if not parts:
        return torch.zeros((), dtype=torch.float64)
    device = parts[0][1].device
    total = torch.stack([part.double().to(device) for _, part in parts]).sum()
    if criterion in ("relative", "onebit"):  # norms, which stay
        return total.sqrt() if criterion == "relative" else total
    for p, part in parts:
        part.fill_(p.numel() * math.log(TINY) if criterion == "geometric" else 0.0)
    mean: Tensor = total / max(1, sum(p.numel() for p, _ in parts))
    return mean.exp() if criterion == "geometric" else mean


def _numbers(window: list[Any]) -> list[float]:
    """The values of the window, those read that are still on a device."""
    waiting = [z for z in window if isinstance(z, Tensor)]
    found = iter(torch.stack(waiting).tolist() if waiting else [])
    return [next(found) if isinstance(z, Tensor) else z for z in window]


def _bounds(group: Options) -> tuple[int, int | None]:
    """The steps before which the phase does not change, and after which it has."""
    total, least, most = group["total_steps"], group["t_min"], group["t_max"]
    if total is not None:
        least = round(0.1 * total) if least is None else least
        most = round(0.5 * total) if most is None else most
    return least or 0, most


def _length(group: Options) -> int:
    """How many values the criterion looks back over."""
    steps = int(1 / (1 - group["betas"][1]) + 1e-6)  # 1 / (1 - 0.99) is a little less than 100
    return {"relative": 2, "onebit": steps + 1}.get(group["criterion"], steps)


def _value(window: list[float], criterion: Criterion, length: int) -> float | None:
    """What the threshold is for; None until the window is full."""
    if len(window) < length:
        return None
    if criterion == "relative":
        return abs(window[-1] - window[0]) / window[0] if window[0] else math.inf
    if criterion == "onebit":
        return window[0] / window[-1] if window[-1] else 1.0
    return math.fsum(window) / len(window)


def _is_due(window: list[float], criterion: Criterion, length: int, eps: float) -> bool:
    value = _value(window, criterion, length)
    if value is None:
        return False
    return value > ONEBIT if criterion == "onebit" else value < (RELATIVE if criterion == "relative" else eps)
