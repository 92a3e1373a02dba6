"""Write docs/composition.md from the code: which modifiers go with which base directions, and why others do not.

python tools/make_composition.py            # write it
python tools/make_composition.py --check    # fail if it is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from polyak.optim import Optimizer, chain, rules
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.rule import Rule
from polyak.optim.vocabulary.matrices import Polar

BASES: dict[str, Callable[[], Rule]] = {
    "heavy_ball": rules.heavy_ball,
    "nesterov": lambda: rules.heavy_ball(nesterov=True),
    "momentum_ema": rules.momentum_ema,
    "adam": rules.adam,
    "amsgrad": lambda: rules.adam(amsgrad=True),
    "adabelief": lambda: rules.adabelief(rectify=False),
    "adan": rules.adan,
    "ademamix": rules.ademamix,
    "adatam": rules.adatam,
    "torque_aware": rules.torque_aware,
    "ano": rules.ano,
    "lion": rules.lion,
    "scaled_at_start": rules.scaled_at_start,
}
"""Directions with a memory of their own."""

Modify = Callable[[Rule], Chain]
MODIFIERS: dict[str, tuple[str, Modify]] = {
    "clip_norm": ("clip_norm, base", lambda base: chain(rules.clip_norm(), base, rules.descend())),
    "decay decoupled": ("decay, base", lambda base: chain(rules.decay(), base, rules.descend())),
    "decay coupled": ("decay, base", lambda base: chain(rules.decay("coupled"), base, rules.descend())),
    "decay fixed": ("decay, base", lambda base: chain(rules.decay("fixed"), base, rules.descend())),
    "decay initial_lr": ("decay, base", lambda base: chain(rules.decay("initial_lr"), base, rules.descend())),
    "decay proximal": ("base, step, decay", lambda base: chain(base, rules.descend(), rules.decay("proximal"))),
    "sr_ste": ("sr_ste, base", lambda base: chain(rules.sr_ste(), base, rules.descend())),
    "times_lr": ("times_lr, base, subtract", lambda base: chain(rules.times_lr(), base, rules.subtract())),
    "cautious": ("base, cautious", lambda base: chain(base, rules.cautious(), rules.descend())),
    "cautious inside": ("cautious behind a memory", lambda base: chain(_inside(base), rules.descend())),
    "grams": ("base, grams", lambda base: chain(base, rules.grams(), rules.descend())),
    "selective": ("base, selective", lambda base: chain(base, rules.selective(), rules.descend())),
    "project": ("base, project", lambda base: chain(base, rules.project(), rules.descend())),
    "trust": ("base, trust", lambda base: chain(base, rules.trust(), rules.descend())),
    "level rows": ("base, level", lambda base: chain(base, rules.level(), rules.descend())),
    "level columns": ("base, level", lambda base: chain(base, rules.level("columns"), rules.descend())),
    "signs": ("base, subgradient l1", lambda base: chain(base, rules.subgradient("l1"), rules.descend())),
    "orthogonalize": (
        "base, orthogonalize",
        lambda base: chain(base, rules.orthogonalize(Polar("svd")), rules.descend()),
    ),
}
"""What is put before or behind a base direction: in which order, and the chain."""

HEAD = f"""# What goes with what

Made from the code by `tools/make_composition.py`. Every pair of a modifier and a base direction of
`polyak.optim.rules`, as a chain that ends with `descend()`. "yes": it takes its steps, the same in every execution
mode, and stays finite; tests hold all of them to that. A number: it is refused where it is made, for the reason below.
`nesterov` is `heavy_ball(nesterov=True)`, `amsgrad` is `adam(amsgrad=True)`; "cautious inside" masks the read-out of
the first memory, `base.at(place, cautious())`, before the rest of the rule. What a pair is good for the table does not
say: `polyak compare` does.

| modifier | order | {" | ".join(f"`{name}`" for name in BASES)} |
|---|---|{"---|" * len(BASES)}
"""


def _inside(base: Rule) -> Rule:
    """The base with a cautious mask behind its first memory that has a place."""
    if not base.places:
        raise ValueError("there is no place behind a memory of this rule")
    return base.at(base.places[0], rules.cautious())


def compose(modifier: str, base: str) -> Chain:
    """The chain of a pair.

    Raises:
        ValueError: the pair makes no sense, with the reason.
    """
    made = MODIFIERS[modifier][1](BASES[base]())
    Optimizer([torch.zeros(2, requires_grad=True)], made)
    return made


def refusals() -> dict[tuple[str, str], str]:
    """The pairs that are refused, and why, without their names."""
    found = {}
    for modifier in MODIFIERS:
        for base in BASES:
            try:
                compose(modifier, base)
            except ValueError as error:
                found[modifier, base] = str(error).split(" makes no sense: ")[-1]
    return found


def page() -> str:
    """The whole page."""
    refused = refusals()
    numbers = {reason: i for i, reason in enumerate(dict.fromkeys(refused.values()), 1)}
    lines = []
    for modifier, (order, _) in MODIFIERS.items():
        cells = [f"{numbers[refused[modifier, base]]}" if (modifier, base) in refused else "yes" for base in BASES]
        lines.append(f"| {modifier} | {order} | {' | '.join(cells)} |\n")
    reasons = "".join(f"{i}. {reason}.\n" for reason, i in numbers.items())
    return f"{HEAD}{''.join(lines)}\n{reasons}"


if __name__ == "__main__":
    from _docs import made  # beside this script

    sys.exit(made("composition.md", page))
