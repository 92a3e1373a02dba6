"""The ring of keys and the losses that read it."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from polyak.teachers import Queue, info_nce, info_nce_logits, multi_positive_info_nce, soft_cross_entropy, soft_targets


def numbered(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].repeat(1, 2)


@given(st.integers(1, 9), st.lists(st.integers(0, 20), max_size=8))
def test_any_batch_leaves_the_last_entries(size, batches):
    queue, written = Queue(size, 2), 0
    for count in batches:
        queue.enqueue(numbered(written, count))
        written += count
    kept = min(written, size)
    assert (queue.pointer, queue.count) == (written % size, kept)
    assert torch.equal(queue.read(valid_only=True), numbered(written - kept, kept))
    for value in range(written - kept, written):
        assert queue.read()[value % size, 0] == value


def test_several_payloads_share_their_slots():
    queue = Queue(5, {"image": 2, "text": (3, 4), "ids": torch.long})
    assert (queue.read("ids") == -100).all()
    queue.enqueue(image=torch.ones(3, 2), text=torch.ones(3, 3, 4), ids=torch.tensor([7, 8, 9]))
    queue.enqueue(torch.ones(3, 2), text=torch.ones(3, 3, 4), ids=torch.tensor([10, 11, 12]))
    assert queue.read("ids").tolist() == [12, 8, 9, 10, 11]
    assert queue.read("ids", valid_only=True).tolist() == [8, 9, 10, 11, 12]


def test_starts_with_unit_vectors():
    torch.testing.assert_close(Queue(10, 4).read().norm(dim=1), torch.ones(10))
    assert Queue(10, 4).read(valid_only=True).shape == (0, 4)


def test_a_snapshot_outlives_the_write():
    queue = Queue(4, 2)
    q = torch.randn(4, 2, requires_grad=True)
    loss = info_nce(q, torch.randn(4, 2), queue.read())
    queue.enqueue(torch.ones(4, 2))
    loss.backward()
    assert q.grad.isfinite().all()


def test_resumed_queue_goes_on():
    queue, other = Queue(5, 2), Queue(5, 2)
    queue.enqueue(numbered(0, 3))
    file = io.BytesIO()
    torch.save(torch.nn.ModuleDict({"queue": queue}).state_dict(), file)
    file.seek(0)
    torch.nn.ModuleDict({"queue": other}).load_state_dict(torch.load(file, weights_only=True))
    for one in (queue, other):
        one.enqueue(numbered(3, 4))
    assert torch.equal(queue.read(), other.read())
    assert (other.pointer, other.count) == (2, 5)
    assert not Queue(5, 2, persistent=False).state_dict()


@pytest.mark.parametrize(
    ("size", "payloads", "name"),
    [(0, 2, "size"), (4, 0, "payloads"), (4, {}, "payloads"), (4, {"ids": torch.float32}, "payloads")],
)
def test_bad_queues(size, payloads, name):
    with pytest.raises(ValueError, match=name):
        Queue(size, payloads)


@pytest.mark.parametrize(
    ("rows", "error", "name"),
    [
        ({"key": torch.ones(2, 3), "ids": torch.ones(2, dtype=torch.long)}, ValueError, "key"),
        ({"key": torch.ones(2, 2)}, ValueError, "rows"),
        ({"key": torch.ones(2, 2), "ids": torch.ones(3, dtype=torch.long)}, ValueError, "rows"),
        ({"key": torch.ones(2, 2), "ids": torch.ones(2)}, TypeError, "ids"),
        ({"key": torch.full((2, 2), torch.nan), "ids": torch.ones(2, dtype=torch.long)}, ValueError, "finite"),
    ],
)
def test_bad_rows_change_nothing(rows, error, name):
    queue = Queue(4, {"key": 2, "ids": torch.long})
    before = {n: v.clone() for n, v in queue.state_dict().items()}
    with pytest.raises(error, match=name):
        queue.enqueue(**rows)
    assert all(torch.equal(value, before[n]) for n, value in queue.state_dict().items())
    assert queue.pointer == 0


def test_a_broken_promise_of_unit_length_warns():
    with pytest.warns(RuntimeWarning, match="unit length"):
        Queue(4, 2, normalised=True).enqueue(torch.ones(2, 2))


def test_one_positive_is_info_nce_in_both_forms():
    logits = torch.randn(6, 9, dtype=torch.float64)
    target = torch.randint(9, (6,))
    positives = torch.nn.functional.one_hot(target, 9).bool()
    for form in ("all", "negatives"):
        torch.testing.assert_close(multi_positive_info_nce(logits, positives, form), cross_entropy(logits, target))


def test_several_positives_by_brute_force():
    logits, positives = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 7) < 0.4
    positives[2] = False
    positives[0] = True
    for form in ("all", "negatives"):
        rows = []
        for s, p in zip(logits, positives, strict=True):
            if p.any():
                rest = s.exp().sum() if form == "all" else s[~p].exp().sum()
                own = [-(x.exp() / (rest + (x.exp() if form == "negatives" else 0))).log() for x in s[p]]
                rows.append(torch.stack(own).mean())
        torch.testing.assert_close(multi_positive_info_nce(logits, positives, form), torch.stack(rows).mean())
    assert multi_positive_info_nce(logits, torch.zeros(5, 7)) == 0


def test_gradients_of_rows_of_positives_only():
    logits = torch.randn(2, 3, requires_grad=True)
    multi_positive_info_nce(logits, torch.ones(2, 3), "negatives").backward()
    assert logits.grad.isfinite().all()


def test_soft_targets():
    teacher, logits = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    hard = torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(
        soft_cross_entropy(logits, soft_targets(teacher, hard, 0.0)), cross_entropy(logits, hard)
    )
    mixed = soft_targets(teacher, hard, 0.4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(soft_cross_entropy(logits, mixed), cross_entropy(logits, mixed))
    torch.testing.assert_close(mixed[1, 2], 0.4 * teacher[1].softmax(0)[2])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: info_nce(x, x, x, 0.0), "temperature"),
        (lambda x: info_nce_logits(x, x[:2], x), "k must"),
        (lambda x: info_nce_logits(x, x, x[:, :1]), "negatives"),
        (lambda x: multi_positive_info_nce(x, x[:1] > 0), "positives"),
        (lambda x: multi_positive_info_nce(x, x > 0, "some"), "denominator"),
        (lambda x: soft_targets(x, x, 1.5), "alpha"),
        (lambda x: soft_targets(x, x[:1], 0.5), "hard"),
        (lambda x: soft_cross_entropy(x, x[:1]), "targets"),
    ],
)
def test_bad_losses(call, name):
    with pytest.raises(ValueError, match=name):
        call(torch.randn(3, 4))
