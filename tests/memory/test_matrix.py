import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from polyak.memory import COEFFICIENTS, as_matrix, newton_schulz, polar

seeds = st.integers(0, 2**31)
sides = st.integers(1, 12)
shapes = st.tuples(sides, sides)


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def singular(x):
    return torch.linalg.svdvals(x.double())


def well_conditioned(seed, rows, cols, low=0.3):
    """A matrix whose singular values lie in [low, 1]."""
    u, _, vh = torch.linalg.svd(draw(seed, rows, cols), full_matrices=False)
    return u @ torch.diag(torch.linspace(1.0, low, min(rows, cols), dtype=torch.float64)) @ vh


@given(seeds, shapes, st.sampled_from(["cubic", "simple", ((2.0, -1.5, 0.5),), (1.5, -0.5, 0.0)]))
def test_convergent_coefficients_reach_the_polar_factor(seed, shape, coefficients):
    x = well_conditioned(seed, *shape)
    torch.testing.assert_close(newton_schulz(x, coefficients, steps=30), polar(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("original", 0.65, 1.16), ("quintic", 0.97, 1.04), ("polar_express", 0.85, 1.15)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_values_of_a_random_matrix_come_near_one(shape, name, low, high, dtype):
    for seed in range(3):
        values = singular(newton_schulz(draw(seed, *shape, dtype=dtype), name))
        assert low <= values.min() <= values.max() <= high


@given(seeds, shapes, st.sampled_from(sorted(COEFFICIENTS)), st.integers(1, 6))
def test_acts_on_singular_values_as_its_polynomial(seed, shape, name, steps):
    x, chosen = draw(seed, *shape), COEFFICIENTS[name]
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    sigma = sigma / (chosen.norm_scale * x.norm() + chosen.eps)
    for step in range(steps):
        a, b, c = chosen.steps[min(step, len(chosen.steps) - 1)]
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    result = newton_schulz(x, name, steps)
    torch.testing.assert_close(result, u @ torch.diag(sigma) @ vh, rtol=1e-9, atol=1e-10)


@given(seeds, shapes, st.floats(1e-2, 1e6), st.sampled_from(["add", "clamp"]))
def test_scale_does_not_matter(seed, shape, scale, eps_form):
    x = draw(seed, *shape)
    x = x / x.norm()
    result = newton_schulz(scale * x, eps=1e-12, eps_form=eps_form)
    torch.testing.assert_close(result, newton_schulz(x, eps=1e-12, eps_form=eps_form), rtol=1e-6, atol=1e-8)


@given(seeds, shapes)
def test_transposing_commutes(seed, shape):
    x = draw(seed, *shape)
    torch.testing.assert_close(newton_schulz(x.mT), newton_schulz(x).mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(polar(x.mT), polar(x).mT, rtol=1e-8, atol=1e-9)


@given(seeds, shapes, st.sampled_from(sorted(COEFFICIENTS)))
def test_a_batch_is_its_members(seed, shape, name):
    batch = draw(seed, 2, 3, *shape)
    result = newton_schulz(batch, name)
    assert result.shape == batch.shape
    for i, j in [(0, 0), (1, 2)]:
        torch.testing.assert_close(result[i, j], newton_schulz(batch[i, j], name), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(polar(batch)[1, 1], polar(batch[1, 1]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("function", [newton_schulz, polar])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_never_writes_to_its_input_and_returns_its_dtype(function, dtype):
    x = torch.randn(2, 6, 4).to(dtype)
    for given_ in (x, x.mT, x[0], x[:, ::2]):
        before = given_.clone()
        result = function(given_)
        assert torch.equal(given_, before)
        assert result.dtype == dtype
        assert result.shape == given_.shape
    assert not torch.equal(result, given_)


@pytest.mark.parametrize("function", [newton_schulz, polar, lambda x: newton_schulz(x, eps_form="clamp")])
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 3, 4), (0, 4), (2, 0, 3)])
def test_zero_and_empty_stay_exactly_zero(function, shape):
    assert torch.equal(function(torch.zeros(shape)), torch.zeros(shape))


def test_a_zero_member_does_not_disturb_its_batch():
    batch = torch.stack([torch.zeros(3, 5), torch.randn(3, 5)])
    assert not newton_schulz(batch)[0].any()
    torch.testing.assert_close(newton_schulz(batch)[1], newton_schulz(batch[1]))


def test_bfloat16_iteration_stays_near_the_exact_one():
    x = torch.randn(32, 64)
    rough, fine = newton_schulz(x, dtype=torch.bfloat16), newton_schulz(x, dtype=torch.float64)
    assert rough.dtype == fine.dtype == torch.float32
    assert not torch.equal(rough, fine)
    assert (rough - fine).norm() < 3e-2 * fine.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_iterates_in_bfloat16_on_cuda(dtype):
    x = torch.randn(32, 64, device="cuda", dtype=dtype)
    assert torch.equal(newton_schulz(x), newton_schulz(x, dtype=torch.bfloat16))
    exact = newton_schulz(x.double())
    assert (newton_schulz(x) - exact).norm() < 3e-2 * exact.norm()


def test_eps_forms_and_the_sets_own_eps():
    x = torch.full((1, 1), 1e-7, dtype=torch.float64)
    identity = (1.0, 0.0, 0.0)
    assert newton_schulz(x, identity).item() == pytest.approx(0.5)
    assert newton_schulz(x, identity, eps_form="clamp").item() == pytest.approx(1.0)
    assert newton_schulz(x, identity, eps=3e-7).item() == pytest.approx(0.25)
    slope = COEFFICIENTS["polar_express"].steps[0][0]
    assert newton_schulz(1e-3 * x, "polar_express", 1).item() == pytest.approx(slope * 1e-10 / (1e-6 + 1.02e-10))


def test_last_triple_is_repeated_and_a_longer_list_is_cut():
    x, first, last = torch.randn(3, 5), (3.0, -3.0, 1.0), (1.5, -0.5, 0.0)
    three = newton_schulz(x, [first, last], steps=3)
    assert torch.equal(three, newton_schulz(x, [first, last, last, first], steps=3))
    assert torch.equal(newton_schulz(x, [list(first)], steps=2), newton_schulz(x, first, steps=2))


@given(seeds, shapes)
def test_polar_factor_is_orthogonal_and_leaves_a_symmetric_part(seed, shape):
    x = well_conditioned(seed, *shape)
    q = polar(x)
    torch.testing.assert_close(singular(q), torch.ones(min(shape), dtype=torch.float64), rtol=0, atol=1e-10)
    part = q.mT @ x
    torch.testing.assert_close(part, part.mT, rtol=0, atol=1e-10)


def test_polar_factor_of_a_deficient_matrix_has_its_rank():
    x = torch.outer(draw(0, 5), draw(1, 7))
    torch.testing.assert_close(polar(x), x / x.norm(), rtol=1e-6, atol=1e-7)


class PeakBytes(TorchDispatchMode):
    """Largest number of bytes alive at a time in storages other than those of ``known``."""

    def __init__(self, known):
        super().__init__()
        self.known, self.alive, self.peak = StorageWeakRef(known.untyped_storage()).cdata, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        storage = out.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata != self.known:
            self.alive[reference.cdata] = reference, storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (128, 32), (2, 32, 64)])
@pytest.mark.parametrize("name", sorted(COEFFICIENTS))
def test_at_most_three_buffers_of_the_size_of_the_input(shape, name):
    x = torch.randn(shape)
    with PeakBytes(x) as bytes_of:
        newton_schulz(x, name)
    assert x.nbytes < bytes_of.peak <= 3 * x.nbytes + 64


def test_compiles_without_a_graph_break():
    x = torch.randn(4, 6)
    compiled = torch.compile(newton_schulz, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), newton_schulz(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "mode", "expected"),
    [
        ((6, 4), "batched", (1, 6, 4)),
        ((6, 4), "flatten", (1, 6, 4)),
        ((8, 6, 4), "batched", (8, 6, 4)),
        ((8, 6, 4), "flatten", (1, 8, 24)),
        ((4, 3, 5, 2), "batched", (1, 4, 30)),
        ((4, 3, 5, 2), "flatten", (1, 4, 30)),
        ((2, 4, 3, 5, 7), "batched", (24, 5, 7)),
        ((2, 4, 3, 5, 7), "flatten", (1, 2, 420)),
        (torch.Size([0, 4]), "batched", (1, 0, 4)),
    ],
)
def test_matrix_view(shape, mode, expected):
    assert as_matrix(shape, mode) == expected
    assert torch.zeros(shape).reshape(expected).shape == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: newton_schulz(torch.ones(3)), ValueError, r"x must be a matrix .*, got \(3,\)"),
        (lambda: newton_schulz(torch.ones(3, 3, dtype=torch.int64)), TypeError, "x must have a real floating dtype"),
        (lambda: newton_schulz(torch.ones(3, 3, dtype=torch.complex64)), TypeError, "got torch.complex64"),
        (lambda: newton_schulz(torch.ones(3, 3), dtype=torch.int8), TypeError, "dtype must be real floating"),
        (lambda: newton_schulz(torch.ones(3, 3), steps=0), ValueError, r"steps must be in 1..99, got 0"),
        (lambda: newton_schulz(torch.ones(3, 3), steps=100), ValueError, r"steps must be in 1..99, got 100"),
        (lambda: newton_schulz(torch.ones(3, 3), eps=0.0), ValueError, "eps must be greater than 0, got 0.0"),
        (lambda: newton_schulz(torch.ones(3, 3), eps_form="max"), ValueError, "eps_form must be .*, got 'max'"),
        (lambda: newton_schulz(torch.ones(3, 3), "muon"), ValueError, "coefficients must be one of original, .*'muon'"),
        (lambda: newton_schulz(torch.ones(3, 3), (1.0, 2.0)), ValueError, "coefficients must be a name, 3 numbers"),
        (lambda: newton_schulz(torch.ones(3, 3), [(1.0, 2.0, 3.0), (1.0,)]), ValueError, r"got \(1.0,\)"),
        (lambda: newton_schulz(torch.ones(3, 3), []), ValueError, "coefficients must be a name"),
        (lambda: polar(torch.ones(3)), ValueError, "x must be a matrix"),
        (lambda: polar(torch.ones(3, 3, dtype=torch.int64)), TypeError, "x must have a real floating dtype"),
        (lambda: as_matrix((3,)), ValueError, r"shape must be at least 2-dimensional .*, got \(3,\)"),
        (lambda: as_matrix((3, 4), "rows"), ValueError, "mode must be .*, got 'rows'"),
    ],
)
def test_errors_name_argument_value_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
