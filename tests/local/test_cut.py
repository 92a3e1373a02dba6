"""Where cuts fall: by hand, by brute force, and against the published tables."""

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.local import balanced, uniform
from polyak.local.cut import check_cuts


def costs_of(costs, cuts):
    sums = [0, *accumulate(costs)]
    return [sums[b] - sums[a] for a, b in pairwise((0, *cuts))]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_balanced_is_the_best_of_all(costs, data):
    blocks = data.draw(st.integers(1, len(costs)))
    cuts = balanced(costs, blocks)
    every = [(*inner, len(costs)) for inner in combinations(range(1, len(costs)), blocks - 1)]
    assert cuts in every
    best = min((max(costs_of(costs, c)), sum(x * x for x in costs_of(costs, c))) for c in every)
    found = costs_of(costs, cuts)
    assert (max(found), sum(x * x for x in found)) == best


@given(st.lists(st.integers(0, 9), min_size=2, max_size=7), st.data())
def test_what_a_cut_costs_on_top_is_balanced_as_well(costs, data):
    places = st.lists(st.integers(0, 9), min_size=len(costs) - 1, max_size=len(costs) - 1)
    ending, starting = data.draw(places), data.draw(places)
    blocks = data.draw(st.integers(1, len(costs)))

    def dearest(cuts):
        blocks = pairwise((0, *cuts))
        tops = [(starting[a - 1] if a else 0) + (ending[b - 1] if b < len(costs) else 0) for a, b in blocks]
        found = [cost + top for cost, top in zip(costs_of(costs, cuts), tops, strict=True)]
        return max(found), sum(x * x for x in found)

    every = [(*inner, len(costs)) for inner in combinations(range(1, len(costs)), blocks - 1)]
    cuts = balanced(costs, blocks, ending, starting)
    assert cuts in every and dearest(cuts) == min(map(dearest, every))


def test_a_dear_end_moves_the_cut():
    assert balanced([2, 2, 2, 2], 2) == (2, 4)
    assert balanced([2, 2, 2, 2], 2, ending=[2, 2, 2]) == (1, 4)  # 4 and 6, not 6 and 4: the first of two equals
    assert balanced([2, 2, 2, 2], 2, ending=[3, 9, 0]) == (3, 4)
    assert balanced([2, 2, 2, 2], 2, starting=[0, 3, 3]) == (1, 4)


def test_balanced_cuts_early_where_early_layers_cost_more():
    costs = [4.0] * 18 + [2.0] * 18 + [1.0] * 18  # ResNet-110
    assert balanced(costs, 2)[0] < uniform(54, 2)[0]
    assert max(costs_of(costs, balanced(costs, 16))) < max(costs_of(costs, uniform(54, 16)))


@pytest.mark.parametrize(
    ("blocks", "published"),
    [
        (2, [(2, 1)]), (3, [(1, 4), (2, 4)]), (4, [(1, 2), (2, 1), (3, 0)]),
        (8, [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)]),
    ],
)  # fmt: skip
def test_uniform_is_the_published_table_of_resnet32(blocks, published):
    """(stage, index in the stage) of the last layer of each block, five layers to a stage."""
    assert uniform(15, blocks) == (*(5 * (stage - 1) + index + 1 for stage, index in published), 15)


@given(st.integers(1, 60), st.data())
def test_uniform_blocks_differ_by_at_most_one_layer(layers, data):
    cuts = uniform(layers, data.draw(st.integers(1, layers)))
    sizes = [b - a for a, b in pairwise((0, *cuts))]
    assert cuts[-1] == layers and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("blocks", [0, 4])
def test_number_of_blocks(blocks):
    for cut in (lambda: uniform(3, blocks), lambda: balanced([1, 1, 1], blocks)):
        with pytest.raises(ValueError, match=rf"num_blocks must be in \[1, 3\] for 3 layers, got {blocks}"):
            cut()


@pytest.mark.parametrize(
    ("cuts", "stem", "message"),
    [
        ([1, 2], True, r"last of cuts must be the number of layers, 3, got \[1, 2\]"),
        ([], True, "last of cuts"),
        ([2, 2, 3], True, "strictly increasing from at least 0"),
        ([2, 1, 3], True, "strictly increasing"),
        ([0, 3], False, "strictly increasing from at least 1"),
        ([-1, 3], True, "strictly increasing"),
    ],
)
def test_explicit_cuts_refused(cuts, stem, message):
    with pytest.raises(ValueError, match=message):
        check_cuts(cuts, 3, stem)


def test_explicit_cuts_and_costs():
    assert check_cuts([0, 1, 3], 3, stem=True) == (0, 1, 3)
    with pytest.raises(ValueError, match="costs must be at least 0"):
        balanced([1.0, float("nan")], 1)
    with pytest.raises(ValueError, match="starting must be at least 0"):
        balanced([1.0, 1.0], 1, starting=[-1.0])
    with pytest.raises(ValueError, match="ending must be empty or 1 numbers for 2 layers, got 2"):
        balanced([1.0, 1.0], 1, ending=[1.0, 1.0])
