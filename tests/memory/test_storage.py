import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import (
    factorize,
    pack_bits,
    reconstruct,
    square_shape,
    unpack_bits,
)

seeds = st.integers(0, 2**31)
sides = st.integers(1, 12)


def draw(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5000))
def test_square_shape_is_the_most_nearly_square(numel):
    rows, cols = square_shape(numel)
    assert rows * cols == numel
    assert rows >= cols
    assert all(numel % i for i in range(cols + 1, math.isqrt(numel) + 1))


def test_square_shapes_of_note():
    assert [square_shape(n) for n in (1, 7, 12, 64, 1024**2)] == [(1, 1), (7, 1), (4, 3), (8, 8), (1024, 1024)]


@given(seeds, sides, sides)
def test_factors_keep_row_and_column_sums(seed, rows, cols):
    matrix = draw(seed, rows, cols).square()
    rebuilt = reconstruct(*factorize(matrix))
    torch.testing.assert_close(rebuilt.sum(0), matrix.sum(0), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rebuilt.sum(1), matrix.sum(1), rtol=1e-12, atol=1e-13)


@given(seeds, sides, sides, st.sampled_from([1, 8]))
def test_rank_one_matrices_are_rebuilt_exactly_signs_and_all(seed, rows, cols, sign_bits):
    matrix = torch.outer(draw(seed, rows).abs(), draw(seed + 1, cols).abs()) * draw(seed + 2, rows, cols).sign()
    row, col, sign = factorize(matrix, sign_bits)
    assert row.shape == (rows,)
    assert col.shape == (cols,)
    assert sign.numel() == (math.ceil(rows * cols / 8) if sign_bits == 1 else rows * cols)
    torch.testing.assert_close(reconstruct(row, col, sign), matrix, rtol=1e-12, atol=1e-13)


def test_the_longer_side_carries_the_total():
    row, col, sign = factorize(torch.ones(2, 5))
    assert (row.sum(), col.sum(), sign) == (1, 10, None)
    row, col, _ = factorize(torch.ones(5, 5))
    assert (row.sum(), col.sum()) == (25, 1)


def test_zero_stays_zero():
    for sign_bits in (None, 1, 8):
        assert not reconstruct(*factorize(torch.zeros(3, 4), sign_bits)).any()


def test_half_precision_is_factored_in_float32():
    row, col, sign = factorize(torch.randn(4, 3).bfloat16(), 1)
    assert (row.dtype, col.dtype, sign.dtype) == (torch.float32, torch.float32, torch.uint8)


@given(seeds, st.lists(st.integers(0, 7), min_size=0, max_size=3))
def test_packed_bits_come_back(seed, shape):
    mask = draw(seed, *shape) > 0
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack_bits(packed, mask.numel()), mask.reshape(-1))


def test_first_bit_is_the_lowest():
    assert pack_bits(torch.tensor([True, False, True] + 6 * [False])).tolist() == [5, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: square_shape(0), ValueError, "numel must be at least 1, got 0"),
        (lambda: factorize(torch.ones(3)), ValueError, r"matrix must be 2-dimensional, got \(3,\)"),
        (lambda: factorize(torch.ones(3, 3), 2), ValueError, "sign_bits must be None, 1 or 8, got 2"),
        (
            lambda: reconstruct(torch.ones(3), torch.ones(3), torch.ones(1).to(torch.uint8)),
            ValueError,
            "packed must be",
        ),
        (
            lambda: reconstruct(torch.ones(3), torch.ones(2), torch.ones(2, 3).bool()),
            ValueError,
            "sign must be of shape",
        ),
        (lambda: reconstruct(torch.ones(3, 1), torch.ones(2)), ValueError, r"row must be 1-dimensional, got \(3, 1\)"),
        (lambda: pack_bits(torch.ones(3)), TypeError, "mask must have dtype torch.bool, got torch.float32"),
        (lambda: unpack_bits(torch.ones(1), 3), TypeError, "packed must have dtype torch.uint8"),
    ],
)
def test_errors_name_argument_value_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
