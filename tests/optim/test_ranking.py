"""The k-th largest number of several tensors, found digit by digit, is that of the sorted numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak.optim.engine import ranking
from polyak.optim.engine.ranking import kth_largest


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.0, width=32, allow_nan=False), max_size=12), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
    st.data(),
)
def test_as_sorted(rows: list[list[float]], dtype: torch.dtype, data: st.DataObject) -> None:
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    together = torch.cat(tensors).sort(descending=True).values
    if not len(together):
        return
    k = data.draw(st.integers(1, len(together)))
    reads = [lambda part, t=t: t[part] for t in tensors]
    found = kth_largest(tensors, [len(t) for t in tensors], reads, k, dtype)
    assert found.dtype == dtype
    assert float(found) == float(together[k - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CHUNK", 7)
    t = torch.randn(100, dtype=dtype, generator=torch.Generator().manual_seed(0)).abs()
    t[:30] = t[50]
    found = [float(kth_largest([t], [100], [lambda part: t[part]], k, dtype)) for k in (1, 40, 60, 100)]
    assert found == t.sort(descending=True).values[[0, 39, 59, 99]].tolist()
