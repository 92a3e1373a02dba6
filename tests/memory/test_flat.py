"""Several tensors as one vector."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import flat, unflat

SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4)


@given(SHAPES)
def test_there_and_back(shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    vector = flat(tensors)
    assert vector.shape == (sum(t.numel() for t in tensors),)
    back = unflat(vector, tensors)
    assert all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(back, tensors, strict=True))


def test_memory_formats_and_dtypes() -> None:
    turned, low = torch.arange(6.0).view(2, 3).t(), torch.ones(2, dtype=torch.bfloat16)
    assert flat([turned, low]).tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 1.0, 1.0]
    parts = unflat(torch.arange(8.0), [turned, low])
    assert parts[0].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] and parts[1].dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        unflat(torch.ones(7), [turned, low])
