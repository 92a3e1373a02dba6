import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from polyak.memory import agreement, cosine, dot, norm, project, reject, rms, sign_times_magnitude

DIMS = [None, 0, 1, -1, (0, 2), (1, 2)]
seeds = st.integers(0, 2**31)
scales = st.floats(1e-6, 1e6)


def draw(seed, dtype=torch.float64, shape=(3, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, *shape, dtype=torch.float64, generator=generator).to(dtype))


@pytest.mark.parametrize("dim", DIMS)
def test_reductions_against_their_definition_and_their_shape(dim):
    a, b = draw(0)
    axes = tuple(range(3)) if dim is None else dim
    shape = () if dim is None else a.sum(dim=dim, keepdim=True).shape
    expected = {
        dot: (a * b).sum(axes, keepdim=True),
        norm: a.pow(2).sum(axes, keepdim=True).sqrt(),
        rms: a.pow(2).mean(axes, keepdim=True).sqrt(),
    }
    for function, value in expected.items():
        result = function(a, b, dim=dim) if function is dot else function(a, dim=dim)
        assert result.shape == shape
        torch.testing.assert_close(result, value.reshape(shape), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cosine(a, b, dim), dot(a, b, dim) / (norm(a, dim) * norm(b, dim)))


@pytest.mark.parametrize("dim", DIMS)
@given(seed=seeds)
def test_projection_and_rejection_are_orthogonal_parts_of_the_whole(dim, seed):
    u, w = draw(seed)
    along, across = project(u, w, dim), reject(u, w, dim)
    torch.testing.assert_close(along + across, u, rtol=1e-14, atol=1e-14)
    assert dot(across, w, dim).abs().max() < 1e-12
    torch.testing.assert_close(cosine(along, w, dim).abs(), torch.ones_like(norm(w, dim)), rtol=1e-12, atol=0)
    torch.testing.assert_close(project(along, w, dim), along, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(reject(across, w, dim), across, rtol=1e-12, atol=1e-13)


@given(seeds, scales, scales)
def test_angles_ignore_lengths(seed, first, second):
    a, b = draw(seed)
    torch.testing.assert_close(cosine(first * a, second * b), cosine(a, b), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(project(a, second * b), project(a, b), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(project(first * a, b), first * project(a, b), rtol=1e-12, atol=1e-13 * first)


@given(seeds, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_cosine_stays_within_one(seed, dtype):
    a, b = draw(seed, dtype)
    for other in (a, -a, b, 3 * a):
        assert cosine(a, other, dim=1).abs().max() <= 1.0
    assert cosine(a, a).item() == pytest.approx(1.0, abs=1e-6)
    assert cosine(a, -a).item() == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tiny", [0.0, 1e-30, 1e-42])
def test_zero_and_vanishing_vectors_are_safe(dim, dtype, tiny):
    u, nothing = torch.randn(3, 4, 5, dtype=dtype), torch.full((3, 4, 5), tiny, dtype=dtype)
    for result in (project(u, nothing, dim), reject(u, nothing, dim), cosine(u, nothing, dim), cosine(nothing, u, dim)):
        assert result.isfinite().all()
    if tiny == 0.0:
        assert not cosine(u, nothing, dim).any()
        assert not cosine(nothing, nothing, dim).any()
        assert not project(u, nothing, dim).any()
        assert torch.equal(reject(u, nothing, dim), u)


def test_eps_is_added_to_the_norm_in_projections_and_bounds_it_in_cosines():
    u, w, eps = torch.randn(6, 4).double(), torch.randn(6, 4).double(), 0.1
    unit = w / (norm(w, 1) + eps)
    torch.testing.assert_close(reject(u, w, 1, eps), u - unit * dot(unit, u, 1), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(project(u, w, 1, eps) + reject(u, w, 1, eps), u, rtol=1e-13, atol=1e-14)
    expected = torch.nn.functional.cosine_similarity(u, w, dim=1, eps=3.0)
    torch.testing.assert_close(cosine(u, w, 1, eps=3.0).squeeze(1), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    x = torch.full((1000,), 60.0, dtype=dtype)  # the squares alone overflow float16
    assert norm(x).dtype == rms(x).dtype == dot(x, x).dtype == cosine(x, x).dtype == torch.float32
    assert rms(x).item() == pytest.approx(60.0, rel=1e-6)
    assert dot(x, x).item() == pytest.approx(3.6e6, rel=1e-6)
    assert project(x, x).dtype == reject(x, x).dtype == dtype
    assert torch.equal(project(x, x), x)


numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@given(numbers, numbers)
def test_agreement_is_the_sign_of_the_product(u, g):
    expected = float((u > 0 and g > 0) or (u < 0 and g < 0))
    assume(abs(u) > 1e-37 and abs(g) > 1e-37)  # CPUs may flush smaller float32 to zero
    assert agreement(torch.tensor(u), torch.tensor(g)).item() == expected


def test_agreement_does_not_underflow_and_takes_the_dtype_of_the_update():
    small = torch.tensor([1e-4, -1e-4, 0.0, float("nan")], dtype=torch.float16)
    assert not (small * small > 0).any()
    mask = agreement(small, small.float())
    assert mask.dtype == torch.float16
    assert mask.tolist() == [1.0, 1.0, 0.0, 0.0]


@given(seeds)
def test_sign_times_magnitude(seed):
    a, b = draw(seed)
    result = sign_times_magnitude(a, b)
    assert torch.equal(result.abs(), b.abs())
    assert torch.equal(agreement(result, a), torch.ones_like(a))
    assert torch.equal(sign_times_magnitude(a, a), a)
    assert not sign_times_magnitude(torch.zeros_like(a), b).any()


@pytest.mark.parametrize("dim", [None, 1])
def test_geometry_compiles_without_a_graph_break(dim):
    def readout(u, g):
        parts = project(u, g, dim), reject(u, g, dim, 1e-8), agreement(u, g), sign_times_magnitude(u, g)
        return *parts, dot(u, g, dim), norm(u, dim), rms(u, dim), cosine(u, g, dim, 1e-8)

    u, g = torch.randn(2, 6, 4)
    compiled = torch.compile(readout, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(u, g), readout(u, g), rtol=0, atol=0)
