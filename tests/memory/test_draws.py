"""Numbers that follow from a seed and a place."""

import pytest

from polyak.memory.draws import uniform_at


def test_the_same_place_has_the_same_number_and_others_have_others():
    numbers = [uniform_at(seed, place) for seed in range(3) for place in range(100)]
    assert numbers == [uniform_at(seed, place) for seed in range(3) for place in range(100)]
    assert len(set(numbers)) == 300 and all(0 <= u < 1 for u in numbers)


def test_numbers_are_spread_evenly():
    numbers = [uniform_at(7, place) for place in range(4000)]
    counts = [sum(k / 10 <= u < (k + 1) / 10 for u in numbers) for k in range(10)]
    assert all(300 < count < 500 for count in counts)


@pytest.mark.parametrize(("seed", "place"), [(-1, 0), (0, -1), (0, 2**64)])
def test_what_is_out_of_range_is_refused(seed, place):
    with pytest.raises(ValueError, match="must be"):
        uniform_at(seed, place)
