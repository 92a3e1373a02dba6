"""Workers of which some lie: aggregators and attacks, the authors' and byzfl's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyak.federated import attacks
from polyak.federated.aggregators import (
    ARC,
    CGE,
    MDA,
    MVA,
    NNA,
    NNM,
    Aksel,
    CenteredClipping,
    Clipping,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MultiKrum,
    Phocas,
    TrimmedMean,
)
from polyak.federated.monna import MoNNA
from tests.reproduce.vector import Unknown, Vector, array

Found = dict[str, Tensor]


def _by_case(vector: Vector, device: str, name: str, compute: Callable[[Tensor, int], Found]) -> dict[str, np.ndarray]:
    """What is computed from the vectors of each case and f."""
    found: dict[str, np.ndarray] = {}
    for case in vector.steps(r"case(\d+)/in/f$"):
        rows, f = vector.input(f"case{case}/in/{name}", device), int(vector.input(f"case{case}/in/f"))
        found |= {f"case{case}/out/{key}": array(value) for key, value in compute(rows, f).items()}
    return found


def _options(vector: Vector, name: str, **names: str) -> dict[str, Any]:
    """The hyperparameters under a name by ours; refuses others, leaves out those that are not said."""
    said = dict(vector.option(name, {}))
    found = {ours: said.pop(theirs) for theirs, ours in names.items() if theirs in said}
    if said:
        raise Unknown(f"nothing reads {said} under {name!r} of {vector.name}")
    return found


def robust(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The rules of the code of MoNNA; around each row where a rule is around one."""
    vector.read_all("centeredclip", "rfa")
    clip = {"tau": 2.0, "steps": 3} | _options(vector, "centeredclip", L_iter="steps", clip_thresh="tau")
    median = GeometricMedian(**_options(vector, "rfa", T="steps", nu="nu"))

    def of(v: Tensor, f: int) -> Found:
        return {
            **{f"nna_idx{i}": NNA(f, i)(v) for i in range(len(v))},
            **{f"centeredclip_self{i}": CenteredClipping(pivot=i, **clip)(v) for i in range(len(v))},
            "centeredclip_zero": CenteredClipping(**clip)(v),
            **{f"iter_nna{r}_idx{i}": NNA(f, i, rounds=r)(v) for i in range(len(v)) for r in (1, 2, 3)},
            "nna_pivot_median": NNA(f, "median")(v), "nnm_then_trmean": TrimmedMean(f)(NNM(f)(v)),
            "average": Mean()(v), "median": Median()(v), "trmean": TrimmedMean(f)(v), "phocas": Phocas(f)(v),
            "meamed": MeaMed(f, lower=True)(v), "krum": Krum(f, squared=False)(v),
            "multiKrum": MultiKrum(f, squared=False)(v), "cge": CGE(f)(v), "aksel": Aksel(lower=True)(v),
            "mva": MVA(f)(v), "rfa": median(v),
        }  # fmt: skip

    return _by_case(vector, device, "vectors", of)


def byzfl(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """byzfl's rules, preparations and attacks; the attacks see the first n - f vectors."""
    vector.read_all("alie", "centered_clipping", "clipping", "geometric_median", "ipm", "mimic", "optimal")
    clip = CenteredClipping(**{"tau": 100.0} | _options(vector, "centered_clipping", L="steps", tau="tau"))
    clipping = Clipping(**_options(vector, "clipping", c="max_norm"))
    median = GeometricMedian(**_options(vector, "geometric_median", T="steps", nu="nu"))
    alie = attacks.ALIE(**_options(vector, "alie", tau="z"))
    ipm = attacks.FOE(z=1 + _options(vector, "ipm", tau="tau").get("tau", 2.0))
    mimic = attacks.Mimic(_options(vector, "mimic", epsilon="target").get("target", 1))  # the second was recorded
    names = {"evals": "evaluations", "start": "search_from", "delta": "first_step", "ratio": "shrink"}
    search = {"evaluations": 20, "first_step": 10.0, "two_sided": False} | _options(vector, "optimal", **names)
    start = search.pop("search_from", 0.0)

    def of(v: Tensor, f: int) -> Found:
        h, rule, first = v[: len(v) - f], TrimmedMean(f), clip(v)
        sent = {
            "signflip": attacks.SignFlip(), "ipm": ipm, "alie": alie, "mimic": mimic,
            "optalie_trmean": attacks.ALIE(against=rule, search_from=start, **search),
            "optipm_trmean": attacks.FOE(against=rule, search_from=1 + start, **search),
        }  # fmt: skip
        return {
            **{f"monna_idx{i}": NNA(f, i)(v) for i in range(len(v))},
            "average": Mean()(v), "median": Median()(v), "trmean": TrimmedMean(f)(v), "geometric_median": median(v),
            "krum": Krum(f)(v), "multikrum": MultiKrum(f)(v), "mda": MDA(f)(v), "meamed": MeaMed(f)(v),
            "centered_clipping_call1": first, "centered_clipping_call2": clip.around(v, first),
            "nnm": NNM(f)(v), "clipping": clipping(v), "arc": ARC(f)(v), "nnm_trmean": TrimmedMean(f)(NNM(f)(v)),
            **{f"att_{name}": attack(h, f)[0] for name, attack in sent.items() if f},
        }  # fmt: skip

    return _by_case(vector, device, "vectors", of)


def attacked(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The attacks of the code of MoNNA."""
    vector.read_all("alie_factor", "foe_factor", "search_evals")
    found: dict[str, np.ndarray] = {}
    for case in vector.steps(r"case(\d+)/in/f$"):
        h, f = vector.input(f"case{case}/in/honest", device), int(vector.input(f"case{case}/in/f"))
        alie, foe = (_factor(vector, f"case{case}/in/", f"{name}_factor") for name in ("alie", "foe"))
        rules = {"trmean": TrimmedMean(f), "nna": NNA(f)}
        search = {"evaluations": vector.option("search_evals", 16)}
        sent = {
            "alie_fixed": attacks.ALIE(alie), "foe_fixed": attacks.FOE(foe), "signflip": attacks.SignFlip(),
            "mimic": attacks.Mimic(), "labelflip": attacks.LabelFlip(),
            **{f"alie_optimal_vs_{name}": attacks.ALIE(against=rule, **search) for name, rule in rules.items()},
            **{f"foe_optimal_vs_{name}": attacks.FOE(against=rule, **search) for name, rule in rules.items()},
        }  # fmt: skip
        found |= {f"case{case}/out/{name}": array(attack(h, f)[0]) for name, attack in sent.items()}
    return found


def monna(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Weights of the honest workers under each attack with each rule, and their momenta."""
    vector.read_all("d", "decay", "delta", "eps", "f", "factor", "lr", "momentum", "n", "seed", "steps")
    f, gradients, heard = vector.option("f"), vector.input("in/grads", device), vector.input("in/responders", device)
    sent = {
        "little": attacks.ALIE(vector.option("factor")), "empire": attacks.FOE(vector.option("eps")),
        "signflipping": attacks.SignFlip(),
    }  # fmt: skip
    clip = dict(
        zip(("tau", "steps"), map(float, vector.said(r"clip_thresh ([\d.]+), (\d+) iterations", "notes")), strict=True)
    )
    rules = {
        "cva": NNA(f), "trmean": TrimmedMean(f), "rfa": GeometricMedian(),
        "centeredclip": CenteredClipping(clip["tau"], int(clip["steps"]), pivot=0),
    }  # fmt: skip
    rates = {name: vector.option(name) for name in ("lr", "momentum", "decay", "delta")}
    found: dict[str, np.ndarray] = {}
    for attack, lies in sent.items():
        for name, rule in rules.items():
            method, went = MoNNA(num_byzantine=f, rule=rule, **rates), []
            theta = vector.input("in/theta0", device).expand(gradients.shape[1:])
            momenta = torch.zeros_like(gradients[0])
            for t in range(len(gradients)):
                half, momenta = method.half_step(theta, momenta, gradients[t], t)
                theta = method.mixed(half, heard[t], lies(half, f) if f else half[:0])
                went.append((theta, momenta))
            thetas, all_momenta = (torch.stack(values) for values in zip(*went, strict=True))
            found |= {f"out/{attack}/{name}/theta": array(thetas), "out/momentum": array(all_momenta)}
    return found


def _factor(vector: Vector, place: str, name: str) -> float:
    """A factor of a case, or of all."""
    return float(vector.inputs[place + name]) if place + name in vector.inputs else vector.option(name)


RULES = {"robust-aggregators": robust, "byzfl-peer": byzfl, "byzantine-attacks": attacked, "monna": monna}
