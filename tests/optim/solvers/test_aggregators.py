import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.optim.solvers import SAMGS, Aggregator, CAGrad, PCGrad

ALL = (SAMGS, PCGrad, CAGrad)
seeds = st.integers(0, 2**31)


def stream(seed, steps=5, tasks=3, entries=7):
    return torch.randn(steps, tasks, entries, generator=torch.Generator().manual_seed(seed)).double()


def plain(**h):
    return SAMGS(multiply_by_tasks=False, max_norm=0.0, **h)


@given(seeds)
def test_sam_gs_by_its_equations(seed):
    aggregator, m, v = plain(gamma=0.0, betas=(0.8, 0.95), eps=1e-6), 0.0, 0.0
    for t, rows in enumerate(stream(seed), 1):
        n = rows.norm(dim=1)
        pairs = torch.stack([2 * n[i] * n[j] / (n[i] ** 2 + n[j] ** 2) for i, j in ((0, 1), (0, 2), (1, 2))])
        m = 0.8 * m + 0.2 * rows
        v = 0.95 * v + 0.05 * (1 - pairs.mean()) ** 2 + 1e-6
        want = (rows * (m / (1 - 0.8**t)).abs() / (v / (1 - 0.95**t)).sqrt()).sum(0)
        torch.testing.assert_close(aggregator(rows), want, rtol=1e-10, atol=1e-12)


def test_sam_gs_makes_unlike_norms_equal_and_remembers_all_the_same():
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # of similarity 0.6
    equal = torch.tensor([2.0, 2.0])
    for gamma, is_equalized in ((0.5, False), (0.7, True)):
        aggregator = plain(gamma=gamma)
        assert torch.equal(aggregator(rows), equal) is is_equalized
        torch.testing.assert_close(aggregator.state_dict()["exp_avg"], 0.1 * rows)


def test_mode_any_looks_at_the_least_similar_pair():
    rows = torch.diag(torch.tensor([1.0, 1.0, 9.0]))  # pairs 1, 0.22, 0.22: mean 0.48
    any_, mean = plain(gamma=0.4, mode="any")(rows), plain(gamma=0.4)(rows)
    torch.testing.assert_close(any_, torch.full((3,), 11 / 3))
    assert not torch.equal(any_, mean)


@given(seeds, st.floats(1e-3, 1e3))
def test_modulated_gradients_scale_with_the_square(seed, scale):
    one, other = plain(gamma=0.0), plain(gamma=0.0)
    for rows in stream(seed, steps=3):
        torch.testing.assert_close(other(scale * rows), scale**2 * one(rows), rtol=1e-9, atol=1e-9 * scale**2)


def test_the_number_of_tasks_multiplies_before_the_norm_is_clipped():
    rows = stream(0)[0]
    g = plain()(rows)
    torch.testing.assert_close(SAMGS(max_norm=0.0)(rows), 3 * g)
    torch.testing.assert_close(SAMGS()(rows), g / g.norm(), rtol=1e-5, atol=0)
    small = 1e-6 * rows
    torch.testing.assert_close(SAMGS()(small), 3 * plain()(small))


def test_pcgrad_draws_from_its_generator_alone():
    rows, before = stream(1, tasks=5)[0], torch.get_rng_state()
    one = PCGrad(generator=torch.Generator().manual_seed(3))
    two = PCGrad("mean", generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(one(rows), 5 * two(rows))
    assert torch.equal(torch.get_rng_state(), before)
    PCGrad()(rows[:2])
    assert torch.equal(torch.get_rng_state(), before)


def test_cagrad_rescales_and_multiplies():
    rows, c = stream(2)[0], 0.6
    g = CAGrad(c, rescale=0)(rows)
    torch.testing.assert_close(CAGrad(c)(rows), g / 1.36)
    torch.testing.assert_close(CAGrad(c, rescale=2)(rows), g / 1.6)
    torch.testing.assert_close(CAGrad(c, rescale=0, multiply_by_tasks=True)(rows), 3 * g)
    torch.testing.assert_close(CAGrad(0.0)(rows), rows.mean(0))


@pytest.mark.parametrize("make", [SAMGS, CAGrad, lambda: PCGrad(generator=torch.Generator().manual_seed(5))])
def test_resume_bit_for_bit(make, tmp_path):
    rows, whole, first, second = stream(3, steps=6, tasks=4), make(), make(), make()
    want = [whole(r) for r in rows]
    for r in rows[:3]:
        first(r)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for r, w in zip(rows[3:], want[3:], strict=True):
        assert torch.equal(second(r), w)


def test_loading_copies_and_a_copy_is_apart():
    rows, aggregator = stream(4)[0], SAMGS()
    aggregator(rows)
    other, twin = SAMGS(), copy.deepcopy(aggregator)
    other.load_state_dict(aggregator.state_dict())
    aggregator(2 * rows)
    assert torch.equal(other(rows), twin(rows))


@pytest.mark.parametrize("make", ALL)
def test_one_task_is_left_as_it_is_with_a_warning(make):
    row, aggregator = stream(5)[0, :1], make()
    with pytest.warns(UserWarning, match=f"{make.__name__} got one task"):
        assert torch.equal(aggregator(row), row[0])


@pytest.mark.parametrize("make", ALL)
def test_tasks_without_a_gradient(make):
    rows = stream(6)[0]
    rows[1] = 0.0
    aggregator = make()
    assert aggregator(rows).isfinite().all()
    assert not make()(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(make, dtype):
    got = make()(stream(7)[0].to(dtype))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.isfinite().all()


NAN = torch.tensor([[1.0, 2.0], [1.0, float("nan")]])


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ([[1.0]], TypeError, "tensor of real floating numbers, got list"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(3), ValueError, r"matrix \(tasks, D\) with at least one of each, got \(3,\)"),
        (torch.ones(0, 3), ValueError, r"got \(0, 3\)"),
        (torch.ones(3, 0), ValueError, r"got \(3, 0\)"),
        (NAN, ValueError, "the gradient of task 1 is not finite"),
        (NAN.nan_to_num(float("inf")), ValueError, "the gradient of task 1 is not finite"),
    ],
)
def test_matrices_that_are_refused(make, bad, kind, words):
    aggregator = make()
    with pytest.raises(kind, match=f"{make.__name__}: .*{words}"):
        aggregator(bad)


def test_a_refused_matrix_changes_no_memory():
    aggregator, twin = SAMGS(), SAMGS()
    for a in (aggregator, twin):
        a(stream(8)[0])
    for bad, words in (
        (stream(8, tasks=2)[0], "remembers 3 tasks and got 2; reset"),
        (stream(8, entries=9)[0], "remembers 7 entries of each and got 9; reset"),
        (torch.full((3, 7), float("inf")), "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            aggregator(bad)
    assert torch.equal(aggregator(stream(8)[1]), twin(stream(8)[1]))
    aggregator.reset()
    assert torch.equal(aggregator(stream(8, tasks=2)[0]), SAMGS()(stream(8, tasks=2)[0]))


@pytest.mark.parametrize(
    ("make", "option", "bad"),
    [
        *((SAMGS, "gamma", x) for x in (-0.1, 1.1, float("nan"))),
        *((SAMGS, "betas", x) for x in ((0.9,), (1.0, 0.9), (0.9, -0.1))),
        *((SAMGS, "eps", x) for x in (0.0, -1.0)),
        (SAMGS, "mode", "all"),
        *((SAMGS, "max_norm", x) for x in (-1.0, float("inf"))),
        (SAMGS, "multiply_by_tasks", 2),
        (PCGrad, "reduction", "max"),
        *((CAGrad, "c", x) for x in (-0.1, float("nan"), float("inf"))),
        (CAGrad, "rescale", 3),
    ],
)
def test_arguments_out_of_range(make, option, bad):
    with pytest.raises(ValueError, match=f"{make.__name__}: {option}"):
        make(**{option: bad})


def test_states_that_do_not_fit():
    with pytest.raises(ValueError, match="SAMGS keeps"):
        SAMGS().load_state_dict({"step": 1})
    with pytest.raises(ValueError, match="PCGrad: of state and aggregator one has a generator"):
        PCGrad().load_state_dict(PCGrad(generator=torch.Generator()).state_dict())


@pytest.mark.parametrize("make", ALL)
def test_what_they_say_of_themselves(make):
    assert issubclass(make, Aggregator)
    assert make.equation
    assert make.paper.arxiv
    assert all(f"{h.name}:" in make.__doc__ for h in make.hypers)
