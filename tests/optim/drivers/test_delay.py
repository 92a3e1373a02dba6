"""A simulator of gradients that come late."""

import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import SGD, AdamW
from polyak.optim.drivers import Delayed

CURVATURES = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)


def run(late: Any, p: nn.Parameter, first: int, last: int) -> None:
    """Steps on a quadratic whose minimum is another one each step."""
    for t in range(first, last):
        p.grad = CURVATURES * (p.detach() - t)
        late.step()


def by_hand(delay: int, updates: int, lr: float, momentum: float) -> Tensor:
    """Update t: batch t at the weights of update t - delay, or at the first ones."""
    weights, v = [torch.ones(3, dtype=torch.float64)], torch.zeros(3, dtype=torch.float64)
    for t in range(updates):
        v = momentum * v + CURVATURES * (weights[max(t - delay, 0)] - t)
        weights.append(weights[-1] - lr * v)
    return weights[-1]


def fresh() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, dtype=torch.float64))


def refuse_once() -> Any:
    """A hook that refuses one step."""
    left = [True]

    def hook(*_: Any) -> None:
        if left:
            left.clear()
            raise RuntimeError("not now")

    return hook


@pytest.mark.parametrize("delay", [0, 1, 4])
@pytest.mark.parametrize("make", [SGD, torch.optim.SGD])
def test_it_is_a_consistent_delay(delay: int, make: Any) -> None:
    """As with a line of old weights, begun ``delay`` calls later."""
    p = fresh()
    run(Delayed(make([p], lr=0.1, momentum=0.5), delay), p, 0, 12 + delay)
    torch.testing.assert_close(p.detach(), by_hand(delay, 12, 0.1, 0.5), rtol=1e-12, atol=0)


def test_no_gradient_is_changed_and_the_weights_stay_at_first() -> None:
    p = fresh()
    late = Delayed(AdamW([p]), 2)
    for t in range(4):
        g = p.grad = torch.full((3,), float(t), dtype=torch.float64)
        before = p.detach().clone()
        late.step()
        assert p.grad is g and bool((g == t).all())
        assert torch.equal(p.detach(), before) is (t < 2)
    late.zero_grad()
    assert p.grad is None


def test_a_closure_runs_once_at_the_weights_of_now() -> None:
    p, seen = fresh(), []
    late = Delayed(SGD([p], lr=0.1), 1)

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        late.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    losses = [late.step(closure).item() for _ in range(3)]
    assert losses[0] == losses[1] == 3.0 and losses[2] < 3.0 and len(seen) == 3


def test_it_resumes_bit_for_bit() -> None:
    p = fresh()
    late = Delayed(AdamW([p], lr=0.1), 3, buffer=5)
    run(late, p, 0, 6)
    file = io.BytesIO()
    torch.save(late.state_dict(), file)
    file.seek(0)
    q = nn.Parameter(p.detach().clone())
    resumed = Delayed(AdamW([q]), 0, buffer=5)
    resumed.load_state_dict(torch.load(file))
    run(late, p, 6, 12)
    run(resumed, q, 6, 12)
    assert resumed.delay == 3 and torch.equal(p, q)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_step_that_was_refused_can_be_made_again(delay: int) -> None:
    p, twin = fresh(), fresh()
    late = Delayed(SGD([p], lr=0.1, check_finite=True), delay)
    plain = Delayed(SGD([twin], lr=0.1), delay)
    for t in range(5):
        p.grad, twin.grad = (torch.full((3,), float(t + 1), dtype=torch.float64) for _ in range(2))
        if t == 2:
            late.optimizer.register_step_pre_hook(refuse_once())
            before = [g[0].clone() for g in late.state_dict()["gradients"]]
            with pytest.raises(RuntimeError, match="not now"):
                late.step()
            held = [g[0] for g in late.state_dict()["gradients"]]
            assert len(held) == len(before) and all(map(torch.equal, held, before))
            assert p.grad is not None and bool((p.grad == 3).all())
        late.step()
        plain.step()
        assert torch.equal(p, twin)


def test_a_gradient_that_was_missing_is_missing_later() -> None:
    p, q = fresh(), fresh()
    late = Delayed(SGD([p, q], lr=1.0), 1)
    q.grad = torch.ones_like(q)
    late.step()
    p.grad, q.grad = torch.ones_like(p), None
    late.step()
    assert bool((p == 1).all()) and bool((q == 0).all())


def test_the_delay_moves_within_the_buffer() -> None:
    p = fresh()
    late = Delayed(SGD([p], lr=1.0), 0, buffer=2)
    for t in range(3):
        p.grad = torch.full((3,), 10.0**t, dtype=torch.float64)
        late.step()
    late.delay = 2
    p.grad = torch.full((3,), 1000.0, dtype=torch.float64)
    late.step()
    assert float(p.detach()[0]) == 1 - 111 - 10


@pytest.mark.parametrize(
    ("delay", "buffer", "error", "match"),
    [
        (-1, None, ValueError, "Delayed: delay must be in [0, inf), got -1"),
        (3, 2, ValueError, "Delayed: delay must be at most the buffer of 2, got 3"),
        (-1, 2, ValueError, "Delayed: delay must be in [0, inf), got -1"),
        (0, -1, ValueError, "Delayed: buffer must be in [0, inf), got -1"),
        (1.0, None, TypeError, "Delayed: delay must be an integer in [0, inf), got 1.0"),
        (True, 2, TypeError, "Delayed: delay must be a number in [0, inf), got True"),
    ],
)
def test_it_refuses(delay: Any, buffer: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=re.escape(match)):
        Delayed(SGD([fresh()]), delay, buffer)


def test_it_refuses_another_delay_on_the_way_and_a_state_of_another_buffer_or_model() -> None:
    p = fresh()
    late = Delayed(SGD([p], lr=1.0), 2)
    run(late, p, 0, 2)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="delay must be"):
            late.delay = wrong
    assert late.delay == 2
    with pytest.raises(ValueError, match="state_dict has a buffer of 2, here it is 1"):
        Delayed(SGD([fresh()]), 1).load_state_dict(late.state_dict())
    other = Delayed(SGD([nn.Parameter(torch.ones(2))], lr=0.5), 2)
    with pytest.raises(ValueError, match=r"the gradient of parameter 0 has shape \(3,\), not its own"):
        other.load_state_dict(late.state_dict())
    assert other.optimizer.param_groups[0]["lr"] == 0.5 and not other.state_dict()["gradients"]
    with pytest.raises(TypeError, match="Delayed: optimizer must be a torch"):
        Delayed([p], 1)  # type: ignore[arg-type]
