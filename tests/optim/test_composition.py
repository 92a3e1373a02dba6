"""Every modifier with every base direction: equal in all modes and finite, or refused where it is made."""

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import Optimizer, chain, rules
from tests.optim.moves import random
from tools.make_composition import BASES, MODIFIERS, compose, refusals

SHAPES = ((4, 8), (6, 4, 2, 2), (5,))
STEPS = 20
PAIRS = [(m, b) for m in MODIFIERS for b in BASES if (m, b) not in refusals()]
COMPILED = [("decay decoupled", "adam")]
"""Of these the kernels are compiled for other tests, too."""


def each_once() -> set[tuple[str, str]]:
    """Pairs among which every modifier and every base is."""
    own = {m: [base for modifier, base in PAIRS if modifier == m] for m in MODIFIERS}
    found = {(m, bases[i % len(bases)]) for i, (m, bases) in enumerate(own.items()) if bases}
    missing = set(BASES) - {base for _, base in found}
    return found | {next(pair for pair in PAIRS if pair[1] == base) for base in missing}


SLOW = each_once()


def when(pair: tuple[str, str]) -> list[pytest.MarkDecorator]:
    """Each kernel takes seconds to compile."""
    if pair in COMPILED:
        return []
    return [pytest.mark.slow if pair in SLOW else pytest.mark.exhaustive]


@functools.cache
def gradients() -> list[list[Tensor]]:
    """Of all steps; those of vectors are no matrices."""
    return [random(10 + t, *SHAPES) for t in range(STEPS)]


def trained(modifier: str, base: str, execution: str) -> list[Tensor]:
    """The weights after all steps."""
    shapes = [s for s in SHAPES if modifier != "orthogonalize" or len(s) > 1]
    params = [nn.Parameter(w) for w in random(0, *shapes)]
    made = compose(modifier, base)
    known = {h.name for h in made.hypers}
    options = {"weight_decay": 0.1, "max_grad_norm": 1.0, "sr_lambda": 0.1, "delta": 3.0}
    given = {name: value for name, value in options.items() if name in known}
    optimizer = Optimizer(params, made, execution=execution, lr=0.01, **given)  # type: ignore[arg-type]
    for found in gradients():
        for p, g in zip(params, found, strict=False):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in params]


def check(modifier: str, base: str, execution: str) -> None:
    eager, other = trained(modifier, base, "eager"), trained(modifier, base, execution)
    for start, one, two in zip(random(0, *SHAPES), eager, other, strict=False):
        assert bool(torch.isfinite(one).all()) and not torch.equal(one, start), base
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12, msg=lambda m: f"{modifier}, {base}: {m}")


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_pairs_step_alike_in_batches(modifier: str) -> None:
    for base in (b for m, b in PAIRS if m == modifier):
        check(modifier, base, "batched")


@pytest.mark.parametrize(("modifier", "base"), [pytest.param(*pair, marks=when(pair)) for pair in PAIRS])
def test_pairs_step_alike_in_compiled_kernels(modifier: str, base: str) -> None:
    check(modifier, base, "compiled")


def test_a_modifier_changes_what_its_base_does() -> None:
    """Without one all bases differ, and no modifier is without effect on Adam."""
    plain = [trained("decay decoupled", base, "eager")[0] for base in BASES]
    for one, two in itertools.combinations(plain, 2):
        assert not torch.equal(one, two)
    # the lr is the initial one here, and Adam's direction has the signs of its memory
    alike = {"decay initial_lr", "cautious inside"}
    kinds = [trained(m, "adam", "eager")[0] for m in MODIFIERS if (m, "adam") in PAIRS and m not in alike]
    for one, two in itertools.combinations(kinds, 2):
        assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: (rules.lion(), rules.selective()), "selective compares with the memory before the step, which only"),
        (lambda: (rules.decay("coupled"), rules.lion()), "decay_coupled before lion makes no sense: it would change"),
        (lambda: (rules.sr_ste(), rules.lion()), "sr_ste before lion makes no sense: it would change the sign"),
        (
            lambda: (rules.lion(), rules.grams()),
            "grams behind lion makes no sense: of a memory that shows in the signs",
        ),
        (lambda: (rules.ano(), rules.decay(), rules.grams()), "grams behind ano makes no sense"),
        (lambda: (rules.lion(), rules.level()), "level_rows behind lion makes no sense: signs have a root mean square"),
        (lambda: (rules.heavy_ball(), rules.subgradient("l1"), rules.grams()), "grams behind subgradient_l1"),
        (lambda: (rules.lion(), rules.subgradient("l1")), "subgradient_l1 behind lion makes no sense: the signs of"),
        (lambda: (rules.times_lr(), rules.clip_norm(), rules.adam()), "times_lr before adam makes no sense: .* the lr"),
        (lambda: (rules.times_lr(), rules.heavy_ball(), rules.orthogonalize()), "times_lr before orthogonalize"),
    ],
)
def test_senseless_pairs_are_refused_where_they_are_made(make, match) -> None:
    with pytest.raises(ValueError, match=match):
        Optimizer([nn.Parameter(torch.ones(2, 2))], chain(*make(), rules.descend()))


def test_what_lies_between_may_make_sense_of_a_pair() -> None:
    """Lion-K's other read-outs, and a projection, leave more of a memory than its signs."""
    for links in (
        (rules.lion(sign=False), rules.grams()),
        (rules.lion(), rules.project(), rules.grams()),
        (rules.adam(), rules.project(), rules.selective()),
        (rules.adam(), rules.times_lr()),
    ):
        Optimizer([nn.Parameter(torch.ones(2, 2))], chain(*links, rules.descend()))
