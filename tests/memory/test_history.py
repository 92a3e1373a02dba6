import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.memory import push, ring_in_order, ring_valid_count, ring_write, ring_write_truncating

capacities = st.integers(1, 9)
batches = st.lists(st.integers(0, 25), max_size=12)


def numbered(first, count):
    """Entries (number, -number), so that mixed-up rows show."""
    number = torch.arange(first, first + count, dtype=torch.float64)
    return torch.stack((number, -number), dim=1)


@given(capacities, st.integers(0, 30))
def test_window_is_the_tail_of_a_list(capacity, pushes):
    history = [torch.zeros(2, dtype=torch.float64)] * capacity
    window = torch.stack(history)
    for value in numbered(1, pushes):
        history.append(value)
        before = window.clone()
        pushed = push(window, value)
        assert torch.equal(window, before)
        window = pushed
        assert torch.equal(window, torch.stack(history[-capacity:]))


@given(capacities, batches, st.booleans())
def test_ring_is_the_tail_of_a_list(capacity, sizes, tensor_pointer):
    buffer, count, history = torch.full((capacity, 2), -99.0, dtype=torch.float64), 0, []
    pointer = torch.zeros(1, dtype=torch.int64) if tensor_pointer else 0
    for size in sizes:
        values = numbered(len(history), size)
        history += list(values)
        result, pointer = ring_write(buffer, pointer, values)
        count = ring_valid_count(count, size, capacity)
        assert result is buffer
        assert isinstance(pointer, torch.Tensor) == tensor_pointer
        assert int(pointer) == len(history) % capacity
        assert count == min(len(history), capacity)
        expected = torch.stack(history[-capacity:]) if history else buffer[:0]
        assert torch.equal(ring_in_order(buffer, pointer, count), expected)


@given(capacities, batches)
def test_ring_slots_are_those_of_writing_one_by_one(capacity, sizes):
    batched = buffer = torch.zeros(capacity, 2, dtype=torch.float64)
    batched, pointer, single, number = buffer.clone(), 0, 0, 1
    for size in sizes:
        values, number = numbered(number, size), number + size
        batched, pointer = ring_write(batched, pointer, values)
        for value in values:
            buffer[single] = value
            single = (single + 1) % capacity
        assert torch.equal(batched, buffer)
        assert pointer == single


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 20))
def test_truncating_ring_equals_the_wrapping_one_where_the_batch_divides(multiple, batch, writes):
    wrapping, truncating = torch.zeros(2, multiple * batch, 2, dtype=torch.float64)
    p = q = 0
    for write in range(writes):
        values = numbered(write * batch, batch)
        (_, p), (_, q) = ring_write(wrapping, p, values), ring_write_truncating(truncating, q, values)
        assert p == q
        assert torch.equal(wrapping, truncating)


def test_values_are_detached_and_cast():
    values = torch.randn(3, 2, requires_grad=True)
    buffer, _ = ring_write(torch.zeros(4, 2, dtype=torch.bfloat16), 0, values)
    assert not buffer.requires_grad
    assert torch.equal(buffer[:3], values.detach().bfloat16())
    ids, _ = ring_write(torch.full((4,), -100), 3, torch.tensor([7, 8], dtype=torch.int32))
    assert ids.tolist() == [8, -100, -100, 7]


def test_full_ring_needs_no_count():
    buffer, pointer = ring_write(torch.zeros(3), 0, torch.arange(5.0))
    assert ring_in_order(buffer, pointer).tolist() == [2.0, 3.0, 4.0]
    assert ring_in_order(buffer, torch.tensor(pointer)).tolist() == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: push(torch.zeros(0, 2), torch.zeros(2)),
            ValueError,
            r"window must be of shape \(K, ...\) with K >= 1",
        ),
        (lambda: push(torch.zeros(3, 2), torch.zeros(3)), ValueError, r"value must be of shape \(2,\), got \(3,\)"),
        (lambda: ring_write(torch.zeros(0, 2), 0, torch.zeros(1, 2)), ValueError, "buffer must be of shape"),
        (lambda: ring_write(torch.zeros(3, 2), 3, torch.zeros(1, 2)), ValueError, "pointer must be in 0..2, got 3"),
        (lambda: ring_write(torch.zeros(3, 2), 0, torch.zeros(1, 3)), ValueError, r"values must be .* got \(1, 3\)"),
        (lambda: ring_write(torch.zeros(3, 2), 0, torch.zeros(2)), ValueError, r"values must be .* got \(2,\)"),
        (lambda: ring_write(torch.zeros(3), 0, torch.zeros(2).long()), TypeError, "values must have .* torch.int64"),
        (lambda: ring_write_truncating(torch.zeros(3), -1, torch.zeros(2)), ValueError, "pointer must be in 0..2"),
        (lambda: ring_valid_count(4, 1, 3), ValueError, "count must be in 0..3, got 4"),
        (lambda: ring_valid_count(0, -1, 3), ValueError, "added must be at least 0, got -1"),
        (lambda: ring_valid_count(0, 1, 0), ValueError, "capacity must be at least 1, got 0"),
        (lambda: ring_in_order(torch.zeros(3), 0, 4), ValueError, "count must be in 0..3, got 4"),
    ],
)
def test_errors_name_argument_value_and_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
