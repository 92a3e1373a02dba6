"""What both MASHAs share: saddle points over workers that compress what they send, with a reference point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from polyak.declare import OPEN_UNIT, Argument, Declared, Field, Interval, Lr, Range
from polyak.memory import ema, flat, unflat, uniform, uniform_bits
from polyak.optim.engine.foreign import refuse_foreign
from polyak.optim.solvers.closures import Closure, check_finite, gradient_of, loss_of
from polyak.optim.solvers.compressors import Compressor, Identity

SEEDS = Interval(0, 2**31, high_open=True)
PER_GROUP = ("lr", "maximize")


class _Draws(NamedTuple):
    """What is drawn in a step: a coin that all share, and a generator for the server and for each worker."""

    coin: float
    server: torch.Generator
    workers: list[torch.Generator]


class MASHA(Declared, torch.optim.Optimizer):
    """Base of :class:`MASHA1` and :class:`MASHA2`: the reference point, the half step and the shared coin.

    ::

        zb <- tau * z + (1 - tau) * w
        zh <- zb - lr * F(w)
        z <- zh - what the workers send of  lr * (F_i(zh) - F_i(w))
        with probability 1 - tau:  w <- z, and F(w) is exchanged in full
    """

    contract: ClassVar[type[Compressor]] = Compressor
    has_feedback: ClassVar[bool] = False
    hint: ClassVar[str] = ""
    _is_made = False

    params: Annotated[
        ParamsT, Argument("parameters, named parameters or groups; the players that ascend with ``maximize``")
    ]
    compressor: Annotated[Compressor, Argument("what workers send with")]
    lr: Annotated[
        Lr, Range(1e-3, 1.0), "length of the steps, gamma; 0.1 to 0.5 over the Lipschitz constant of F works"
    ] = 1e-2
    tau: Annotated[
        float | None, OPEN_UNIT, "weight of z against the reference, and the chance that this stays; by default full "
        "exchanges cost as much as compressed ones",
    ] = None  # fmt: skip
    _: KW_ONLY
    server_compressor: Annotated[Compressor, Argument("what the server sends with; all of it by default")] = Identity()
    per_tensor: Annotated[bool, "compress each tensor by itself, not all as one vector"] = False
    average: Annotated[bool, "keep the average of the half steps, as ``state[p]['average']``"] = False
    seed: Annotated[int, SEEDS, "of the coin and of the compressors; all processes need the same"] = 0
    maximize: Annotated[bool, Argument("ascend: -gradient is this player's part of F")] = False

    def _begin(self, values: dict[str, Any]) -> None:
        params = values.pop("params")
        kept = {name: values.pop(name) for name in ("compressor", "server_compressor")}
        for name, one in kept.items():
            if not isinstance(one, self.contract):
                kind, got = self.contract.__name__, type(one).__name__
                raise TypeError(f"{type(self).__name__}: {name} must be {kind}, got {got}; {self.hint}")
        self.__dict__.update(kept)
        torch.optim.Optimizer.__init__(self, params, {**values, "step": 0, "refreshes": 0})
        self._fit_compressors()
        self._is_made = True

    def _fit_compressors(self) -> None:
        """Hold both compressors to their contract on vectors of the size of ours, and fill in tau."""
        try:
            tau = self._fitting_tau()
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None
        for group in self.param_groups:
            group["tau"] = tau

    def _fitting_tau(self) -> float:
        """The tau that was given, or that follows from what the compressors send of all parameters."""
        sizes = [p.numel() for p in self._params()]
        pieces = sizes if self.param_groups[0]["per_tensor"] else [sum(sizes)]
        for one in (self.compressor, self.server_compressor):
            one.check_size(max(pieces))
            one.verify(max(pieces))
        given: float | None = self.defaults["tau"]
        share = sum(self.compressor.sent(n) for n in pieces) / sum(sizes)
        if given is None and not 0 < share < 1:
            raise ValueError(f"tau must be given where a compressor sends {share:.3g} of what it gets")
        return 1 - share if given is None else given

    def _elsewhere(self, name: str) -> str:
        return f"{type(self).__name__} has no attribute {name!r}: each group has its own, in optimizer.param_groups"

    def _set_field(self, field: Field, value: Any) -> None:
        raise AttributeError(self._elsewhere(field.name))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, before the first step; groups differ in ``lr`` and ``maximize`` alone.

        The default of ``tau`` is then that of all parameters.
        """
        name = type(self).__name__
        if self.state:
            raise ValueError(f"{name} takes no more parameters after its first step")
        for h in self.hypers:
            h.check({**self.defaults, **param_group}[h.name], name)
            if h.name not in PER_GROUP and param_group.get(h.name, self.defaults[h.name]) != self.defaults[h.name]:
                raise ValueError(f"{name}: {h.name} must be the same in all groups")
        super().add_param_group(param_group)
        if any(not p.is_floating_point() or not p.requires_grad for p in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError(f"{name} needs real floating parameters that require a gradient")
        if self._is_made:
            try:
                self._fit_compressors()
            except ValueError:
                self.param_groups.pop()
                raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this method.

        Raises:
            ValueError: another method's, or one of other parameters; names it, and nothing has changed.
        """
        states = state_dict.get("state", {}).values()
        workers = next((len(values["residual"]) for values in states if "residual" in values), 0)

        def wanted(saved: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...]]:
            if not saved["step"]:
                return {}
            names = ["reference", "operator", *["average"] * saved["average"]]
            names += ["server_residual"] * self.has_feedback
            found = {name: tuple(p.shape) for name in names}
            return found | ({"residual": (workers, *p.shape)} if self.has_feedback else {})

        refuse_foreign(self, state_dict, wanted)
        for saved in state_dict["param_groups"]:
            for h in self.hypers:
                h.check(saved[h.name], type(self).__name__)
        super().load_state_dict(state_dict)

    @property
    def sent(self) -> float:
        """How many numbers a worker has sent up to now; the exchanges in full are counted."""
        group, sizes = self.param_groups[0], [p.numel() for p in self._params()]
        pieces = sizes if group["per_tensor"] else [sum(sizes)]
        each = sum(self.compressor.sent(n) for n in pieces)
        return float(each * group["step"] + sum(sizes) * (group["refreshes"] + (group["step"] > 0)))

    @torch.no_grad()
    def step(self, losses: Sequence[Closure], full: Sequence[Closure] | None = None) -> Tensor:  # type: ignore[override]
        """Perform one step; returns the mean loss at the half step.

        Args:
            losses: for each worker a closure that returns its loss and does not call ``backward()``. Each is called
                twice in a row, at zh and at w, and must take the same batch both times. The gradient of the loss, with
                its sign turned where ``maximize``, is F_i.
            full: what F(w) is exchanged of, at first and at refreshes: closures on all of the data and of all workers
                where ``losses`` are of batches or of some; None takes ``losses``.

        Raises:
            TypeError: closures that cannot be called, or return no tensor.
            ValueError: no closure; a loss that is not one number with a graph; another number of workers than there are
                residuals of.
            RuntimeError: a gradient, or what a compressor made of it, is not finite, or breaks its contract. Parameters
                and memories are then as they were before.
        """
        workers, everyone = self._checked(losses, "losses"), self._checked(losses if full is None else full, "full")
        params, group = self._params(), self.param_groups[0]
        before = [p.clone() for p in params]
        draws = self._draws(len(workers))
        try:
            w, f = self._reference(everyone)
            base = self._base(before, w, f)
            half = self._proximal(base)
            value, sent, memories = self._exchanged(workers, half, w, draws)
            after = self._after(base, half, sent)
            check_finite(after, "the step")
            self._put(after)
            if draws.coin < 1 - group["tau"]:
                w, f = after, self._operator(everyone, "full")
        except BaseException:
            self._put(before)
            raise
        self._remember({"reference": w, "operator": f, **memories}, half, is_refreshed=w is after)
        return value

    def _remember(self, memories: dict[str, list[Tensor]], half: list[Tensor], is_refreshed: bool) -> None:
        """Write the memories of a step that went well."""
        t = self.param_groups[0]["step"] + 1
        for i, p in enumerate(self._params()):
            self.state[p].update({name: values[i] for name, values in memories.items()})
            if self.param_groups[0]["average"]:
                average = self.state[p].get("average", half[i])
                self.state[p]["average"] = ema(average, half[i], 1 / t)
        for group in self.param_groups:
            group["step"] = t
            group["refreshes"] += is_refreshed

    def _checked(self, closures: Sequence[Closure], name: str) -> list[Closure]:
        listed = list(closures)
        if not listed:
            raise ValueError(f"{type(self).__name__}: {name} must be one closure or more, got none")
        for i, one in enumerate(listed):
            if not callable(one):
                raise TypeError(f"{type(self).__name__}: {name}[{i}] must be a closure, got {type(one).__name__}")
        return listed

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _per_param(self, name: str) -> list[Any]:
        return [group[name] for group in self.param_groups for _ in group["params"]]

    def _put(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self._params(), values, strict=True):
            p.copy_(value)

    def _draws(self, workers: int) -> _Draws:
        """From the seed and the number of the step alone: a resumed run, and every process, draws the same."""
        group = self.param_groups[0]
        seed = torch.tensor((group["seed"] << 32) + group["step"], device="cpu")
        bits = uniform_bits(torch.empty(workers + 2, device="cpu"), seed)
        server, *others = (torch.Generator().manual_seed(s % 2**32) for s in bits[1:].tolist())
        return _Draws(float(uniform(bits[:1])), server, others)

    def _value_and_operator(self, closure: Closure, name: str) -> tuple[Tensor, list[Tensor]]:
        loss = loss_of(closure, name)
        gradient = gradient_of(loss, self._params(), name)
        signs = self._per_param("maximize")
        return loss.detach(), [-g if ascends else g for g, ascends in zip(gradient, signs, strict=True)]

    def _operator(self, closures: Sequence[Closure], name: str) -> list[Tensor]:
        """The mean of the workers' operators where the parameters are."""
        found = [self._value_and_operator(one, f"{name}[{i}]")[1] for i, one in enumerate(closures)]
        return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]

    def _reference(self, everyone: Sequence[Closure]) -> tuple[list[Tensor], list[Tensor]]:
        """w and F(w); at first where the parameters are."""
        params = self._params()
        if self.state:
            return [self.state[p]["reference"] for p in params], [self.state[p]["operator"] for p in params]
        return [p.clone() for p in params], self._operator(everyone, "full")

    def _base(self, z: Sequence[Tensor], w: Sequence[Tensor], f: Sequence[Tensor]) -> list[Tensor]:
        tau, rates = self.param_groups[0]["tau"], self._per_param("lr")
        return [ema(b, a, tau) - lr * c for a, b, c, lr in zip(z, w, f, rates, strict=True)]

    def _proximal(self, values: list[Tensor]) -> list[Tensor]:
        """What a part of the problem that only the server knows makes of a point."""
        return values

    def _exchanged(
        self, workers: Sequence[Closure], half: list[Tensor], w: list[Tensor], draws: _Draws
    ) -> tuple[Tensor, list[Tensor], dict[str, list[Tensor]]]:
        """The mean loss at the half step, what the server sends of the workers' differences, and what was not sent."""
        residuals = self._residuals(len(workers))
        value, mean, kept = self._from_workers(workers, half, w, draws, residuals)
        sent, rest = self._encoded(self.server_compressor, mean, residuals[-1], draws.server)
        if not self.has_feedback:
            return value, sent, {}
        return value, sent, {"residual": [torch.stack(r) for r in zip(*kept, strict=True)], "server_residual": rest}

    def _from_workers(
        self, workers: Sequence[Closure], half: list[Tensor], w: list[Tensor], draws: _Draws,
        residuals: list[list[Tensor]],
    ) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:  # fmt: skip
        """The mean loss at the half step, the mean of what the workers send, and what each did not."""
        mean, value = [torch.zeros_like(p) for p in half], torch.zeros_like(half[0]).sum()
        kept: list[list[Tensor]] = []
        for i, one in enumerate(workers):
            self._put(half)
            loss, there = self._value_and_operator(one, f"losses[{i}]")
            self._put(w)
            _, here = self._value_and_operator(one, f"losses[{i}]")
            difference = [a - b for a, b in zip(there, here, strict=True)]
            if self.has_feedback:
                difference = [lr * d for lr, d in zip(self._per_param("lr"), difference, strict=True)]
            sent, rest = self._encoded(self.compressor, difference, residuals[i], draws.workers[i])
            mean = [m + q / len(workers) for m, q in zip(mean, sent, strict=True)]
            value = value + loss.to(value) / len(workers)
            kept.append(rest)
        return value, mean, kept

    def _residuals(self, workers: int) -> list[list[Tensor]]:
        """What each worker, and last the server, has not sent yet; nothing at first, and without feedback."""
        params = self._params()
        if not self.has_feedback or not self.state:
            return [[torch.zeros_like(p) for p in params]] * (workers + 1)
        kept = [self.state[p]["residual"] for p in params]
        if len(kept[0]) != workers:
            raise ValueError(f"{type(self).__name__} keeps residuals of {len(kept[0])} workers, got {workers} losses")
        return [*([k[i] for k in kept] for i in range(workers)), [self.state[p]["server_residual"] for p in params]]

    def _encoded(
        self, compressor: Compressor, u: list[Tensor], residual: list[Tensor], generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What is sent of a vector and of what was not sent before, and what still is not."""
        u = [a + e for a, e in zip(u, residual, strict=True)]
        if self.param_groups[0]["per_tensor"]:
            sent = [compressor(x.reshape(-1), generator).view(x.shape) for x in u]
        else:
            sent = unflat(compressor(flat(u), generator), u)
        return sent, [a - q for a, q in zip(u, sent, strict=True)]

    def _after(self, base: list[Tensor], half: list[Tensor], sent: list[Tensor]) -> list[Tensor]:
        """The new z; with feedback the rates are in what was sent."""
        if self.has_feedback:
            return [a - q for a, q in zip(half, sent, strict=True)]
        return self._proximal([a - lr * q for a, q, lr in zip(base, sent, self._per_param("lr"), strict=True)])

    def __getstate__(self) -> dict[str, Any]:
        own = ("compressor", "server_compressor", "_is_made")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}
