"""Aggregators: by value against the plainest transcription of each, and what all of them promise."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.federated import aggregators
from polyak.federated._rows import sorted_columns, squared_distances
from polyak.federated.aggregators import ARC, CGE, MDA, MVA, NNA, NNM, CenteredClipping, Krum, MeaMed, Mean, TrimmedMean

NAMES = aggregators.names()


def rows(n: int = 9, d: int = 13, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(name: str, f: int = 2) -> aggregators.Aggregator:
    kind = aggregators.get(name)
    return kind(num_byzantine=f) if "num_byzantine" in kind.search_space or hasattr(kind, "num_byzantine") else kind()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept_inputs_are_not_touched_and_a_call_repeats(name, dtype):
    v = rows(dtype=dtype).requires_grad_()
    before = v.detach().clone()
    one, two = made(name)(v), made(name)(list(v.detach()))
    assert one.dtype == dtype and not one.requires_grad
    assert one.shape in {v.shape, v.shape[1:]}
    assert torch.equal(one, two) and torch.equal(v.detach(), before)
    exact = made(name)(before.double())
    torch.testing.assert_close(one.double(), exact, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_columns_in_blocks_are_the_columns_at_once(name, monkeypatch):
    v = rows(11, 37)
    whole = made(name)(v)
    monkeypatch.setattr("polyak.federated._rows.COLUMNS", 5)
    monkeypatch.setattr("polyak.federated._rows.BYTES", 40)
    torch.testing.assert_close(made(name)(v), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {"nnm", "clipping", "arc", "centered_clipping"}])
def test_equal_vectors_give_themselves(name):
    v = rows(1, 6).expand(7, 6)
    torch.testing.assert_close(made(name)(v), v if made(name)(v).ndim == 2 else v[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"mean", "cge", "nnm", "clipping", "arc", "centered_clipping"}))
def test_far_vectors_do_not_move_the_result_far(name):
    v = rows(11, 5)
    bad = v.clone()
    bad[-2:] = 1e6
    assert (made(name)(bad) - v[:-2].mean(0)).norm() < 4
    assert (Mean()(bad) - v[:-2].mean(0)).norm() > 1e5


@given(st.integers(3, 33), st.integers(0, 16), st.integers(0, 10_000))
def test_coordinates_by_sorting(n, f, seed):
    f = min(f, (n - 1) // 2)
    v = rows(n, 7, seed)
    s = v.sort(0).values
    torch.testing.assert_close(TrimmedMean(f)(v), s[f : n - f].mean(0))
    torch.testing.assert_close(aggregators.Median()(v), v.quantile(0.5, dim=0))
    for center, rule in ((v.quantile(0.5, dim=0), MeaMed), (s[f : n - f].mean(0), aggregators.Phocas)):
        nearest = (v - center).abs().sort(dim=0, stable=True).indices[: n - f]
        torch.testing.assert_close(rule(f)(v), v.gather(0, nearest).mean(0))


@given(st.integers(1, 24), st.lists(st.integers(0, 24), max_size=3), st.integers(0, 10_000))
def test_parts_of_sorted_columns(n, ends, seed):
    v, cuts = rows(n, 9, seed).round(decimals=1), [min(end, n) for end in sorted(ends)]
    found = torch.stack(sorted_columns(v, tuple(cuts)))
    for low, high in zip([0, *cuts], [*cuts, n], strict=True):
        part = found[low:high].sort(0).values if cuts else found
        assert torch.equal(part, v.sort(0).values[low:high])


@given(st.integers(3, 9), st.integers(0, 4), st.integers(0, 10_000), st.booleans())
def test_subsets_by_trying_all(n, f, seed, ties):
    f = min(f, (n - 1) // 2)
    v = rows(n, 2, seed).round() if ties else rows(n, 2, seed)
    d = (v[:, None] - v).square().sum(-1)
    subsets = [list(s) for s in combinations(range(n), n - f)]
    torch.testing.assert_close(MDA(f)(v), v[min(subsets, key=lambda s: d[s][:, s].max().item())].mean(0))
    if not ties:
        torch.testing.assert_close(MVA(f)(v), v[min(subsets, key=lambda s: d[s][:, s].sum().item())].mean(0))


def test_minimum_diameter_of_many():
    v = rows(40, 3)
    v[::4] += 50
    assert (MDA(10)(v) - v[[i for i in range(40) if i % 4]].mean(0)).norm() < 1e-12


def test_distances_of_close_vectors_far_from_zero():
    v = 1e6 + rows(6, 300, dtype=torch.float64) * 1e-3
    v[0] = 1e9  # what the rows are seen from
    v[3] = v[2]
    want = (v[:, None] - v).square().sum(-1)
    found = squared_distances(v)
    torch.testing.assert_close(found, want, rtol=1e-7, atol=0)
    assert found[2, 3] == 0 and torch.equal(found, found.T)


def test_ties_go_to_the_first():
    v = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64)
    assert NNA(num_byzantine=2)(v).item() == 0.0
    assert NNA(num_byzantine=1, pivot=1)(v).item() == pytest.approx((0 + 1 + 2 - 1) / 4)
    assert CGE(num_byzantine=3)(v).item() == 0.5
    assert Krum(num_byzantine=1)(torch.tensor([[1.0], [0.0], [1.0], [0.0]])).item() == 1.0


def test_preparations_shorten_and_mix():
    v = rows(8, 4) * torch.arange(1, 9)[:, None]
    assert ARC(2)(v).norm(dim=1).sort().values[-4:].unique().numel() <= 4
    assert (aggregators.Clipping(1.5)(v).norm(dim=1) <= 1.5 + 1e-12).all()
    assert torch.equal(NNM(0)(v)[0], NNM(0)(v)[5])


def test_centred_clipping_goes_on_from_any_point():
    v, clip = rows(), CenteredClipping(2.0)
    torch.testing.assert_close(clip.around(v, clip(v)), CenteredClipping(2.0, steps=2)(v))
    for center in (torch.zeros(3), torch.zeros(13), torch.full((13,), torch.nan, dtype=torch.float64)):
        with pytest.raises(ValueError, match="center must be finite"):
            clip.around(v, center)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_finite_are_taken_away(name):
    v = rows()
    bad = v.clone()
    bad[2, 3], bad[4, 0] = torch.nan, -torch.inf
    left = [0, 1, 3, 5, 6, 7, 8]
    if name == "mean":
        with pytest.raises(ValueError, match=r"vectors must be finite, all; those of rows \[2, 4\] are not"):
            made(name)(bad)
        return
    got, want = made(name)(bad), made(name, 0)(v[left])
    if got.ndim == 2:  # what prepares leaves them for the rule behind
        assert not got[[2, 4]].isfinite().all(1).any()
        got = got[left]
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)
    if hasattr(made(name), "num_byzantine"):
        with pytest.raises(ValueError, match=r"but for 1 of 9 at most; those of rows \[2, 4\]"):
            made(name, 1)(bad)


def test_a_lost_row_moves_no_pivot():
    bad = rows()
    bad[1, 0] = torch.inf
    left = bad[[0, *range(2, 9)]]
    assert torch.equal(NNA(2, pivot=5)(bad), NNA(1, pivot=4)(left))
    assert torch.equal(NNA(2).seen_by(5)(bad), NNA(2, pivot=5)(bad)) and Krum(2).seen_by(5) == Krum(2)
    with pytest.raises(ValueError, match="the pivot, row 1, must be finite"):
        NNA(2, pivot=1)(bad)
    clip = CenteredClipping(2.0, pivot=3)
    assert torch.equal(clip(bad), CenteredClipping(2.0, pivot=2)(left))
    assert torch.equal(clip.around(bad, left[0]), clip.around(left, left[0]))


@pytest.mark.parametrize("name", ["krum", "multi_krum", "nna", "mda", "mva", "cge", "aksel", "median", "trimmed_mean"])
def test_rows_whose_squares_are_not_finite_are_far(name):
    v = rows()
    far = v.clone()
    far[0], far[8] = 1e200, -1e200
    found = made(name).replaced(pivot=1)(far) if name == "nna" else made(name)(far)
    assert (found - v[1:8].mean(0)).norm() < 4


def test_names_and_frozen():
    assert aggregators.get("krum") is Krum and Krum(2) == Krum(2) != Krum(1) and hash(Krum(2)) == hash(Krum(2))
    assert repr(Krum(2)) == "Krum(num_byzantine=2, squared=True)"
    with pytest.raises(ValueError, match="no aggregator 'krumm'; did you mean 'krum'"):
        aggregators.get("krumm")
    with pytest.raises(AttributeError, match="frozen"):
        Krum(2).num_byzantine = 3


@pytest.mark.parametrize("name", NAMES)
def test_vectors_that_are_refused(name):
    rule, v = made(name), rows()
    bad = v.clone()
    bad[1:6, 3] = torch.nan
    for vectors, error, words in [
        (bad, ValueError, r"vectors must be finite, .*those of rows \[1, 2, 3, 4, 5\] are not"),
        (v[0], ValueError, r"\(n, d\)"),
        (v[:, :0], ValueError, r"\(n, d\)"),
        ([], ValueError, "an empty list"),
        (v.long(), TypeError, "real floating numbers"),
        ([v[0], v[1, :4]], ValueError, r"vectors\[1\] must have 13 entries"),
        ([v[0], v[1].float()], TypeError, r"vectors\[1\] must be torch.float64"),
        ([v[0], [1.0]], TypeError, r"vectors\[1\] must be a 1-d tensor"),
    ]:
        with pytest.raises(error, match=words):
            rule(vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["geometric_median", "centered_clipping", "nna", "cge"])
def test_rows_whose_squares_do_not_fit_are_like_others(name, dtype):
    """Powers of two, so that the arithmetic is the same; lengths that count are given in the same unit."""
    small, unit = rows(dtype=dtype), 2.0**80
    h = {"geometric_median": "nu", "centered_clipping": "tau"}.get(name)
    kind = aggregators.get(name)
    want = kind(**{h: 1.0})(small) if h else kind()(small)
    found = kind(**{h: unit})(small * unit) if h else kind()(small * unit)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found / unit, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["trimmed_mean", "meamed", "phocas", "krum", "multi_krum", "nna", "mda", "mva", "arc"])
def test_too_many_byzantine(name):
    with pytest.raises(ValueError, match="num_byzantine must be below half of the vectors, at most 4, got 5 for 9"):
        made(name, 5)(rows())
    with pytest.raises(ValueError, match=r"num_byzantine must be in \[0, inf\), got -1"):
        made(name, -1)


def test_other_arguments_that_are_refused():
    for make, words in [
        (lambda: NNA(pivot=9)(rows()), "pivot must be below the number of vectors, 9"),
        (lambda: CenteredClipping(pivot=9)(rows()), "pivot must be below the number of vectors, 9"),
        (lambda: NNA(pivot="mean"), "'median'"),
        (lambda: CenteredClipping(tau=-1.0), "tau"),
        (lambda: aggregators.GeometricMedian(nu=0.0), "nu"),
        (lambda: aggregators.GeometricMedian(steps=0), "steps"),
        (lambda: CGE(9)(rows()), "below the number of vectors, 9"),
        (lambda: MVA(14)(rows(30)), "subsets"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()


def test_a_mean_whose_sum_is_too_large():
    assert Mean()(torch.full((4, 2), 3e38)).isfinite().all()
