"""A training run with everything that makes optimizers go wrong, the same in every execution mode.

Gradients that are missing, or in other strides than the weight; weights in channels_last, transposed, strided, empty or
of one element; parameters unfrozen late; a group added on the way; hyperparameters that move; a step that a
GradScaler skips. Run as a program it goes on with saved runs in a process of its own: ``python -m
tests.optim.scenario DIRECTORY``.
"""

import functools
import math
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import polyak.optim

STEPS, HALF = 30, 15
ADDED, INFINITE = 9, 11
UNFROZEN = {"late": 6, "later": 20}
KINDS = ("adamw", "cadamw", "adamp", "adan", "muon")
"""One of each kind: elementwise, a sum over one tensor, over rows, over all tensors, a matrix function."""
DOUBLE = (torch.float64, torch.float64)
HALVES = (torch.float32, torch.bfloat16)

# Every term of every method takes part. Muon iterates in float64: its rounding is amplified by the iteration.
OPTIONS: dict[str, dict] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1},
    "adam": {"amsgrad": True},
    "adan": {"max_grad_norm": 100.0},
    "ademamix": {"alpha_warmup": 20, "beta3_warmup": 25},
    "adamp": {"delta": 3.0},
    "sgdp": {"lr": 0.05, "momentum": 0.9, "delta": 3.0},
    "cadan": {"max_grad_norm": 100.0, "no_prox": True},
    "adatam": {"scope": "global"},
    "adatamw": {"dampen": True, "bias_correction": True},
    "lionk": {"kappa": "group"},
    "spam": {"DeltaT": 7, "warmup_steps": 3, "grad_accu_steps": 2, "threshold": 0.05, "density": 0.5},
    "stable_spam": {"DeltaT": 7, "total_T": 20, "amsgrad": True},
    "smmf": {"vector_reshape": False},
    "random_scaling": {"base": "ogd", "mu": 0.5},
    "adaptive_braking": {"rho": 2.0, "nesterov": True, "granularity": "filter", "decay_after": True},
    "m3": {"ns_dtype": torch.float64, "frequency": 4},
    "nl_delta": {"feature": "cube", "delta": 0.5},
    "step": {"betas": (0.9, 0.9), "criterion": "geometric"},
    "muon": {"ns_dtype": torch.float64, "aux_lr": 1e-2, "aux_weight_decay": 0.05},
    "alr_mag": {"lb": -1.0},
    "alr_hb": {"lb": -1.0, "c": 0.5},
    "alr_nag": {"lb": -1.0},
    "am_sgd": {"bmax": 0.8},
    "am_adamw": {"lam": 1.0},
    "momo": {"lr": 0.1, "lb": -1e4, "use_fstar": True},
    "momo_adam": {"lb": -1e3, "use_fstar": True},
    "cmuon": {"ns_dtype": torch.float64, "aux_lr": 1e-2, "aux_weight_decay": 0.05},
    "namo": {"ns_dtype": torch.float64, "clip_step": 5e-3, "aux_weight_decay": 0.05},
    "namo_d": {"ns_dtype": torch.float64, "clip_step": 5e-3, "aux_weight_decay": 0.05},
    "auon": {"variant": "paper"},
    "hybrid_auon": {"ns_dtype": torch.float64},
    "fismo": {"ns_dtype": torch.float64, "normalize_stats": True, "update_interval": 3, "max_dim": 300},
}


def weights() -> list[dict[str, Tensor]]:
    """Three groups of weights; the first and the last hold matrices only, as Muon wants."""
    source = torch.Generator().manual_seed(1)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    last = torch.channels_last
    matrices = {
        "big": new(200, 200), "big_conv": new(64, 64, 3, 3).to(memory_format=last), "big_turned": new(190, 200).t(),
        "conv": new(8, 4, 3, 3).to(memory_format=last), "turned": new(6, 9).t(), "empty": new(0, 3),
        "late": new(12, 4), **{f"small{i}": new(16, 16) for i in range(6)}, "odd": new(7, 3),
    }  # fmt: skip
    rest = {
        "scalar": new(), "one": new(1), "five": new(5), "vector": new(64), "strided": new(10, 20)[:, ::2],
        "later": new(33), "big_vector": new(40000), **{f"bias{i}": new(16) for i in range(6)}, "no": new(0),
    }  # fmt: skip
    return [matrices, rest, {"added": new(9, 9), "row": new(1, 6)}]


@functools.lru_cache(maxsize=STEPS)
def gradients(t: int) -> dict[str, Tensor | None]:
    """The gradients of step ``t``: about one in seven is missing, some have strides of their own."""
    source = torch.Generator().manual_seed(100 + t)
    found: dict[str, Tensor | None] = {}
    for i, (name, w) in enumerate((n, w) for group in weights() for n, w in group.items()):
        g = torch.randn(w.shape, generator=source, dtype=torch.float64)
        if (t + i) % 2:
            g = torch.empty_like(w).copy_(g)  # the weight's strides
        elif g.ndim == 2 and (t + i) % 3 == 0:
            g = g.t().contiguous().t()
        missing = torch.rand((), generator=source) < 0.15 or t < UNFROZEN.get(name, 0)
        found[name] = None if missing else g
    return found


class Run:
    """One method on the scenario."""

    def __init__(self, name: str, execution: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        kinds = (dtypes[0], dtypes[1], dtypes[0])
        # .to() keeps strides where it converts, and the tensor itself where it does not
        self.groups = [
            {n: torch.nn.Parameter(w.to(kind), requires_grad=n not in UNFROZEN) for n, w in group.items()}
            for group, kind in zip(weights(), kinds, strict=True)
        ]
        self.params = {n: p for group in self.groups for n, p in group.items()}
        given = {"lr": 1e-2, "weight_decay": 0.05, **OPTIONS.get(name, {})}
        first, second, self.third = (
            {"params": list(group.items()), "role": "matrix" if matrices else "rest"}
            for group, matrices in zip(self.groups, (True, False, True), strict=True)
        )
        second |= {"lr": 3e-3, "weight_decay": 0.0}
        self.optimizer = polyak.optim.get(name)([first, second], **given, execution=execution)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        self.scaler.scale(torch.zeros(()))  # makes its tensors
        self.initial = [dict(group) for group in self.optimizer.param_groups]

    def grow(self) -> None:
        """Add the third group."""
        self.optimizer.add_param_group(self.third)
        common = {name: self.initial[0][name] for name in self.optimizer.one_for_all}
        self.initial.append({**self.optimizer.param_groups[2], **common})

    def train(self, start: int, stop: int) -> None:
        """Run steps ``start`` to ``stop``."""
        for t in range(start, stop):
            if t == ADDED:
                self.grow()
            self._step(t)

    def _step(self, t: int) -> None:
        for group, initial in zip(self.optimizer.param_groups, self.initial, strict=True):
            group["lr"] = initial["lr"] * (1 - t / 60)
            for name in {"betas", "momentum"} & set(group):
                group[name] = _times(initial[name], 1 - 0.004 * t)
        scale = self.scaler.get_scale()
        for name, p in self.params.items():
            p.requires_grad_(t >= UNFROZEN.get(name, 0))
            g = gradients(t)[name]
            p.grad = None if g is None else (g * scale).to(p.dtype)
        if t == INFINITE:
            self.params["big"].grad = torch.full_like(self.params["big"], torch.inf)
        before = self.everything() if t == INFINITE else {}
        self.scaler.step(self.optimizer, loss=1 + 0.5 * math.sin(t))
        self.scaler.update()
        after = self.everything() if t == INFINITE else {}
        assert set(before) == set(after)
        assert all(torch.equal(before[k], after[k]) for k in before), "a skipped step changed something"

    def everything(self) -> dict[str, Tensor]:
        """Copies of all weights and memories by name."""
        out = {name: p.detach().clone() for name, p in self.params.items()}
        for name, p in self.params.items():
            out |= {f"{name}.{key}": v.clone() for key, v in self.optimizer.state.get(p, {}).items()}
        for index, group in enumerate(self.optimizer.param_groups):
            shared = self.optimizer.chain_of(group).shared
            out |= {f"{memory.name} of group {index}": group[memory.name].clone() for memory in shared}
        return out

    def save(self, path: Path) -> None:
        """Save as one saves a training run."""
        weights = {name: p.detach() for name, p in self.params.items()}
        torch.save(
            {"weights": weights, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}, path
        )

    def load(self, path: Path) -> None:
        """Load into a new run."""
        saved = torch.load(path)
        for name, p in self.params.items():
            p.data.copy_(saved["weights"][name])
            p.requires_grad_(UNFROZEN.get(name, 0) < HALF)
        self.grow()
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])


def go_on(path: Path) -> dict[str, Tensor] | str:
    """The rest of a run saved as ``method.execution.first-dtype.second-dtype``, or the error it met."""
    name, execution, *dtypes = path.name.removesuffix(".half").split(".")
    try:
        run = Run(name, execution, tuple(getattr(torch, d) for d in dtypes))  # type: ignore[arg-type]
        run.load(path)
        run.train(HALF, STEPS)
        return run.everything()
    except Exception:
        return traceback.format_exc()


def _times(value: Any, factor: float) -> Any:
    """Numbers, in tuples of tuples too, times a factor."""
    return tuple(_times(one, factor) for one in value) if isinstance(value, tuple) else value * factor


if __name__ == "__main__":
    for half in sorted(Path(sys.argv[1]).glob("*.half")):
        torch.save(go_on(half), half.with_suffix(".whole"))
