import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import cagrad, cagrad_weights, equalize, magnitude_similarity, norm, pcgrad

seeds = st.integers(0, 2**31)
sizes = st.integers(2, 6)


def draw(seed, tasks=3, entries=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, entries, dtype=torch.float64, generator=generator)
    return (rows * torch.randn(tasks, 1, dtype=torch.float64, generator=generator).exp()).to(dtype)


@given(seeds, sizes)
def test_similarity_is_that_of_the_formula_for_each_pair(seed, tasks):
    rows = draw(seed, tasks)
    n = rows.norm(dim=1).tolist()
    pairs = [2 * n[i] * n[j] / (n[i] ** 2 + n[j] ** 2) for i in range(tasks) for j in range(i + 1, tasks)]
    torch.testing.assert_close(magnitude_similarity(rows), torch.tensor(pairs, dtype=torch.float64), rtol=1e-12, atol=0)


def test_similarity_of_equal_and_of_missing_gradients():
    rows = torch.tensor([[3.0, 4.0], [0.0, -5.0], [0.0, 0.0], [0.0, 0.0]])
    assert magnitude_similarity(rows).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert magnitude_similarity(rows[:1]).shape == (0,)
    assert magnitude_similarity(torch.tensor([[1e30], [1e30]])).tolist() == [1.0]  # whose squares overflow


@given(seeds, sizes)
def test_equalized_gradients_count_alike(seed, tasks):
    rows = draw(seed, tasks)
    n = rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(equalize(rows), n.mean() * (rows / n).sum(0), rtol=1e-12, atol=1e-13)
    with_zero = torch.cat([rows, torch.zeros_like(rows[:1])])
    torch.testing.assert_close(equalize(with_zero), equalize(rows), rtol=1e-12, atol=1e-13)
    assert not equalize(torch.zeros(2, 3)).any()


@given(seeds)
def test_two_tasks_lose_their_conflict_and_nothing_else(seed):
    a, b = draw(seed, 2)
    free = pcgrad(torch.stack([a, b]), torch.tensor([[1], [0]]))
    if a @ b >= 0:
        assert torch.equal(free, torch.stack([a, b]))
    else:
        assert abs(float(free[0] @ b)) < 1e-10 * float(a.norm() * b.norm())
        torch.testing.assert_close(free[0], a - (a @ b) / (b @ b) * b, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(free[1], b - (a @ b) / (a @ a) * a, rtol=1e-12, atol=1e-13)


def test_pcgrad_follows_the_order_it_is_given():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]])
    orders = torch.tensor([[1, 2], [0, 2], [0, 1]])
    first, second = pcgrad(rows, orders), pcgrad(rows, orders.flip(1))
    assert not torch.equal(first[0], second[0])
    g = rows[0] - (rows[0] @ rows[1]) / 2 * rows[1]  # (1/2, 1/2), in conflict with the third
    torch.testing.assert_close(first[0], g - (g @ rows[2]) / 5 * rows[2])


def objective(rows, w, c):
    gram = rows @ rows.T
    return float(w @ gram.mean(1) + c * (gram.mean() + 1e-8).sqrt() * (w @ gram @ w + 1e-8).sqrt())


@given(seeds, sizes, st.sampled_from([0.0, 0.2, 0.4, 0.9, 2.0]))
def test_cagrad_weights_minimize_over_the_simplex(seed, tasks, c):
    rows = draw(seed, tasks)
    w = cagrad_weights(rows, c)
    assert w.min() >= 0
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
    best, scale = objective(rows, w, c), float((rows @ rows.T).diagonal().mean())
    # the problem is convex: nowhere on the way to a corner, and so nowhere at all, is it lower
    for corner in torch.eye(tasks, dtype=torch.float64):
        for share in (1e-6, 1e-3, 0.1, 1.0):
            assert objective(rows, w + share * (corner - w), c) >= best - 1e-9 * scale


@pytest.mark.parametrize("c", [0.0, 0.4, 3.0])
@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(3, 4),
        torch.ones(3, 4),
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 0.0]]),
        torch.diag(torch.logspace(-8, 3, 12)),
        torch.ones(1, 4),
        1e-15 * torch.ones(2, 3),
        1e15 * torch.eye(2),
    ],
)
def test_cagrad_weights_where_the_problem_is_flat_or_badly_scaled(rows, c):
    w = cagrad_weights(rows, c)
    assert w.dtype == rows.dtype
    assert w.min() >= 0
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-6)
    assert cagrad(rows, w, c).isfinite().all()


@given(seeds, st.sampled_from([0.2, 0.4, 0.9]))
def test_cagrad_stays_in_its_ball_and_raises_the_worst_task(seed, c):
    rows = draw(seed)
    mean = rows.mean(0)
    g = cagrad(rows, cagrad_weights(rows, c), c)
    assert norm(g - mean) <= c * math.sqrt(float(mean @ mean) + 1e-8) * (1 + 1e-9)
    assert (rows @ g).min() >= (rows @ mean).min() - 1e-6 * float((rows @ rows.T).diagonal().mean())


def test_a_negative_c_is_refused():
    with pytest.raises(ValueError, match=r"c must be at least 0, got -0\.1"):
        cagrad_weights(torch.eye(2), -0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    rows = torch.full((2, 1000), 60.0, dtype=dtype)
    assert magnitude_similarity(rows).tolist() == [1.0]
    for result in (
        equalize(rows),
        pcgrad(rows, torch.tensor([[1], [0]])),
        cagrad(rows, cagrad_weights(rows, 0.4), 0.4),
    ):
        assert result.dtype == torch.float32
        assert result.isfinite().all()
