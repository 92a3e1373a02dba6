"""Records of comparisons that were never made: any number of methods, problems, trials and seeds, in milliseconds."""

import math
import random
from dataclasses import replace

from polyak.declare import Choice, Range
from polyak.lab.described import Described
from polyak.lab.spec import Record

NAMES = [
    *("adamw", "sgd", "muon", "lion", "adan", "cadamw", "torch.optim.Adagrad", "timm.optim.Lamb"),
    *("mine.py:make_optimizer", "adamp", "ademamix", "nadam", "radam", "shampoo", "soap", "prodigy"),
    *("sophia", "adafactor", "came", "lars", "adabelief", "yogi", "apollo", "madgrad"),
]
SPACE = {"lr": Range(1e-5, 1e-1), "weight_decay": Range(1e-4, 1.0), "betas": Choice(((0.9, 0.99), (0.95, 0.98)))}
USED = {"polyak": "1.0", "code": "abc", "torch": "2.13", "python": "3.12"}


def described(methods, problem="digits", **changes):
    words = {
        "problem": problem,
        "description": "A small network on small pictures.",
        "metric": "accuracy",
        "higher_is_better": True,
        "target": 0.95,
        "steps": 200,
        "methods": tuple(NAMES[:methods]) if isinstance(methods, int) else tuple(methods),
        "margin": 0.003,
        "command": f"polyak compare {problem} --methods all",
        "date": "2026-01-31 12:00",
        "commit": "0123abc",
        "machine": "ada: Linux x86_64, 2 cores",
        **changes,
    }
    words.setdefault("reference", words["methods"][0])
    words.setdefault("spaces", dict.fromkeys(words["methods"], SPACE))
    return Described(**words)


def records(one, trials=10, seeds=5, lost=True, seed=0):
    """Records of every method of a description; with ``lost`` a few runs diverge or fail."""
    draw = random.Random(f"{one.problem} {seed}")
    made = {}
    noise = {s: draw.gauss(0, 0.003) for s in range(seeds + 1)}
    for place, method in enumerate(one.methods):
        skill = 0.97 - 0.004 * abs(place - 1) ** 1.2
        best, reached = None, -math.inf
        for trial in range(trials):
            setting = {
                "lr": float(f"{10 ** draw.uniform(-5, -1):.4g}"),
                "weight_decay": float(f"{10 ** draw.uniform(-4, 0):.4g}"),
                "betas": draw.choice([[0.9, 0.99], [0.95, 0.98]]),
            }
            value = skill - 0.05 * (math.log10(setting["lr"]) + 2.2 + 0.1 * place) ** 2 + draw.gauss(0, 0.002)
            diverged = lost and draw.random() < 0.1
            if not diverged and value > reached:
                best, reached = setting, value
            note(made, one, method, setting, 0, "validation", None if diverged else value, place, draw, trial)
        if best is None:
            continue
        for other in (1, 2):
            note(made, one, method, best, other, "validation", reached + draw.gauss(0, 0.004), place, draw, other)
        for other in range(1, seeds + 1):
            gone = lost and place % 7 == 5 and other == 1
            value = None if gone else skill + noise[other] + draw.gauss(0, 0.0015)
            note(made, one, method, best, other, "test", value, place, draw, other)
    return made


def note(made, one, method, setting, seed, split, value, place, draw, number):
    key = f"{one.problem}-{method}-{split}-{seed}-{number}"
    if value is None:
        detail = {"reason": "the loss is NaN", "step": 17, "train": [[10, 3.0]], "validation": []}
        made[key] = Record(key, one.problem, method, setting, seed, split, one.steps, USED, "diverged", None, detail)
        return
    if not one.higher_is_better:
        value = 1 - value
    steps = [max(1, round(one.steps * (i + 1) / 25)) for i in range(25)]
    shape = [1 - math.exp(-s / (one.steps * (0.1 + 0.01 * place))) for s in steps]
    curve = [value * part if one.higher_is_better else value + (1 - part) for part in shape]
    detail = {
        "train": [[s, 2.3 * (1 - 0.98 * part) + draw.uniform(0, 0.02)] for s, part in zip(steps, shape, strict=True)],
        "validation": [[s, v] for s, v in zip(steps, curve, strict=True)],
        "target_step": next((s for s, v in zip(steps, curve, strict=True) if v >= (one.target or math.inf)), None),
        "parameters": 1000,
        "state_bytes": 4000 * (1 + place % 3),
        "timing": {
            "step_ms": 4 + place % 5,
            "optimizer_ms": 0.5 + place % 5 * 0.6,
            "compile_seconds": 0.1,
            "target_seconds": 0.3,
        },
    }
    made[key] = Record(key, one.problem, method, setting, seed, split, one.steps, USED, "finished", value, detail)


def slow_and_unmet():
    """A comparison whose target nobody met, and in which the last seed's runs took far longer than the others."""
    one = described(2, target=0.9999)
    made = records(one, lost=False)
    for key, r in made.items():
        timing = {**r.detail["timing"], "total_seconds": 90.0 if r.seed == 5 else 2.0}
        made[key] = replace(r, detail={**r.detail, "timing": timing, "target_step": None})
    return one, made
