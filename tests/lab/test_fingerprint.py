"""How a problem behaves before training."""

import pytest
import torch
from torch import nn

from polyak.lab.fingerprint import REPORTS, fingerprint
from tests.lab.conftest import quadratic
from tests.lab.test_loops import own


def test_a_fingerprint_is_what_a_problem_does():
    first = fingerprint(quadratic())
    assert fingerprint(quadratic(name="other", steps=7, target=None)) == first
    others = {
        "shape": quadratic(build_model=lambda seed: nn.Linear(4, 1)),
        "values": quadratic(build_model=lambda seed: scaled(nn.Linear(4, 1, bias=False), 1.01)),
        "signs": quadratic(build_model=lambda seed: scaled(nn.Linear(4, 1, bias=False), -1)),
        "batches": quadratic(train_batches=lambda seed: iter([torch.ones(4)] * 2)),
        "validation": quadratic(evaluate=lambda model, split: 1.0),
    }
    marks = {name: fingerprint(problem) for name, problem in others.items()}
    assert len({first, *marks.values()}) == 1 + len(marks)


def scaled(model, factor):
    model.weight.data *= factor
    return model


def loop(noise=0.0, width=4, params=lambda model: model, first=None, needs=None, closure=False):
    """A problem with a loop of its own, and what it came to."""
    steps = []

    def train(make_optimizer, seed, report, split):
        model = nn.Linear(width, 1)
        optimizer = make_optimizer(params(model), eps=1e-7)
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
        if first is not None:
            report(0, first)
        if needs:
            getattr(optimizer, needs)()

        def gradient():
            optimizer.zero_grad()
            (model(torch.ones(width)) + noise).square().sum().backward()
            return noise

        for step in range(1, 4):
            optimizer.step(gradient) if closure else (gradient(), optimizer.step())
            steps.append(step)
            report(step, loss=1.0)

    return own(train), steps


def mark(**changes):
    return fingerprint(loop(**changes)[0])


def test_that_of_a_loop_is_its_beginning_up_to_the_first_step():
    problem, steps = loop()
    base = fingerprint(problem)
    assert fingerprint(problem) == base and not steps
    others = [mark(noise=0.5), mark(width=5), mark(first=1.0), mark(first=2.0), mark(params=lambda m: [m.weight])]
    assert len({base, *others}) == 6


def test_groups_generators_and_closures_are_taken_as_by_an_optimizer():
    groups = mark(params=lambda m: [{"params": iter([m.weight]), "lr": 0.0}, {"params": m.bias}])
    assert groups != mark(params=lambda m: [{"params": [m.weight]}, {"params": m.bias}], noise=0.5)
    assert mark(params=nn.Module.parameters) != mark(params=nn.Module.parameters, noise=0.5)
    assert mark(params=nn.Module.named_parameters) == mark() == mark(closure=True)


def test_what_only_a_method_under_test_has_ends_it():
    assert mark(needs="eval", first=1.0) == mark(needs="eval", first=1.0) != mark(needs="eval", first=2.0)


def test_a_loop_that_fails_before_its_optimizer_fails():
    with pytest.raises(ZeroDivisionError):
        fingerprint(own(lambda *_: 1 / 0))


def test_a_loop_without_steps_is_left_after_some_reports():
    seen = []

    def train(make_optimizer, seed, report, split):
        make_optimizer(nn.Linear(2, 1))
        for step in range(10):
            seen.append(step)
            report(step, 1.0)

    fingerprint(own(train))
    assert len(seen) == REPORTS
