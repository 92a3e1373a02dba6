"""Local updates: what happens at a sync point, alone and among processes."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from polyak.distributed import DelayedNesterov, LocalUpdates
from polyak.optim import SGD, AdamW
from tests import ranks
from tests.distributed.jobs import batch, inner_and_outer, learn, net, reference

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

DROPPED = "LocalUpdates: the pseudo-gradient or a buffer of worker 1 at step 3 is not finite; it is dropped"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they did."""
    folder = tmp_path_factory.mktemp("done")
    cases = ["diloco", "delayed", "absent", "spoiled", "spoiled_all", "apart", "alike", "clipped", "resumed", "sharded"]
    cases += ["buffered", "unlike"]
    ranks.launch("distributed.local_worker", folder, *(f"local:{case}" for case in cases))
    return folder


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_two_processes_are_two_workers_in_one(done: Path) -> None:
    same(ranks.result(done, "local:diloco"), reference(2))


def test_delayed_nesterov_outside(done: Path) -> None:
    same(ranks.result(done, "local:delayed"), reference(2, outer="delayed"))


def test_an_absent_worker_takes_what_the_others_made(done: Path) -> None:
    same(ranks.result(done, "local:absent"), reference(2, taking=lambda sync: [0] if sync == 0 else [0, 1]))


def test_a_pseudo_gradient_that_is_nan_is_dropped_and_named(done: Path) -> None:
    found, said = ranks.result(done, "local:spoiled")
    same(found, reference(2, taking=lambda sync: [0] if sync == 0 else [0, 1], forgets=1))
    assert said == [DROPPED] * 2


def test_a_buffer_that_is_nan_drops_its_worker(done: Path) -> None:
    found, buffers, said = ranks.result(done, "local:buffered")
    server = net()
    _, outside = inner_and_outer(server)
    model = net()
    learn(model, inner_and_outer(model)[0], 0, 3)
    for p, q in zip(server.parameters(), model.parameters(), strict=True):
        p.grad = p.detach() - q.detach()
    outside.step()
    same(found, weights(server))
    assert buffers == [[3.0, 3.0]] * 2
    assert said == [DROPPED] * 2


def test_whatever_differs_between_workers_is_refused_on_all(done: Path) -> None:
    first, second = ranks.result(done, "local:unlike")
    assert first == second
    assert all("must be the same on all workers; those of [1] differ from worker 0's" in words for words in first)
    assert "LocalUpdates: parameters and buffers must" in first[3]


def test_if_none_takes_part_all_go_back(done: Path) -> None:
    found, outer = ranks.result(done, "local:spoiled_all")
    same(found, weights(net()))
    assert outer == {}


def test_workers_that_meet_at_different_steps_are_told(done: Path) -> None:
    said = ranks.result(done, "local:apart")
    assert said == ["LocalUpdates: worker 1 is at step 2, others at 3; they must meet at one"] * 2


def test_other_models_are_refused_on_all_workers(done: Path) -> None:
    said = ranks.result(done, "local:alike")
    words = "parameters, buffers and arguments must be the same on all workers; those of [1] differ"
    assert all(words in one for one in said)


def test_deltas_are_shortened(done: Path) -> None:
    same(ranks.result(done, "local:clipped"), reference(2, clip=0.01))


def test_a_period_in_the_middle_is_resumed_bit_for_bit(done: Path) -> None:
    straight, resumed = ranks.result(done, "local:resumed")
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_shards_of_workers_are_averaged_elementwise(tmp_path: Path) -> None:
    ranks.launch("distributed.local_worker", tmp_path, "local:replicas", world=4)
    same(ranks.result(tmp_path, "local:replicas"), reference(2, clip=0.01))


def test_one_worker_of_shards_is_one_worker(done: Path) -> None:
    same(ranks.result(done, "local:sharded"), reference(1))


def test_alone_with_rate_one_it_is_the_inner_optimizer() -> None:
    model, other = net(), net()
    inner = AdamW(model.parameters(), lr=0.05)
    LocalUpdates(inner, SGD(model.parameters(), lr=1.0), sync_every=3)
    learn(model, inner, 0, 7)
    learn(other, AdamW(other.parameters(), lr=0.05), 0, 7)
    same(weights(model), weights(other))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_torch_optimizers_on_either_side(kind: type[torch.optim.Optimizer]) -> None:
    model = net()
    inner = kind(model.parameters(), lr=0.05)  # type: ignore[call-arg]
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    local = LocalUpdates(inner, outer, sync_every=2)
    learn(model, inner, 0, 4)
    assert local.steps == 4
    assert all("momentum_buffer" in outer.state[p] for p in model.parameters())
    before = weights(model)
    local.close()
    learn(model, inner, 4, 8)
    assert local.steps == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_gradients_of_the_user_stay() -> None:
    model = net()
    inner, outer = inner_and_outer(model)
    LocalUpdates(inner, outer, sync_every=1)
    learn(model, inner, 0, 1)
    grads = [p.grad.clone() for p in model.parameters()]
    other = net()
    x, y = batch(0, 0)
    nn.functional.mse_loss(other(x), y).backward()
    same(grads, [p.grad for p in other.parameters()])


def test_buffers_are_averaged_and_integers_left() -> None:
    model = net()
    inner, outer = inner_and_outer(model)
    numbers = torch.tensor([1, 2])
    local = LocalUpdates(inner, outer, 1, buffers=[torch.ones(3), numbers])
    assert len(local.buffers) == 1


def test_asking_for_the_state_is_no_step() -> None:
    model = net()
    inner, outer = inner_and_outer(model)
    local = LocalUpdates(inner, outer, sync_every=1)
    before = weights(model)
    get_optimizer_state_dict(model, inner)
    assert local.steps == 0
    same(weights(model), before)


def refused(make: Any, words: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_bad_arguments() -> None:
    model, other = net(), net()
    inner, outer = inner_and_outer(model)
    refused(lambda: LocalUpdates(inner, outer, 0), "sync_every must be in")
    refused(lambda: LocalUpdates(inner, outer, 2.5), "sync_every must be an integer", TypeError)
    refused(lambda: LocalUpdates(model, outer, 2), "inner must be a torch.optim.Optimizer, got", TypeError)
    refused(lambda: LocalUpdates(inner, "sgd", 2), "outer must be a torch.optim.Optimizer, got str", TypeError)
    refused(lambda: LocalUpdates(inner, inner, 2), "outer must be another optimizer with all parameters")
    refused(lambda: LocalUpdates(inner, SGD(other.parameters()), 2), "outer must be another optimizer")
    refused(lambda: LocalUpdates(inner, outer, 2, max_delta_norm=0.0), "max_delta_norm must be in")
    assert not inner._optimizer_step_post_hooks


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    model, other = net(), nn.Linear(2, 2)
    inner, outer = inner_and_outer(model)
    local = LocalUpdates(inner, outer, 2)
    theirs = LocalUpdates(*inner_and_outer(other), 2).state_dict()
    with pytest.raises(ValueError, match="the state_dict has parameters of shapes"):
        local.load_state_dict(theirs)
    assert local.steps == 0


def test_parameters_added_on_the_way_are_refused_at_the_sync_point() -> None:
    model = net()
    inner, outer = inner_and_outer(model)
    local = LocalUpdates(inner, outer, 2)
    inner.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(RuntimeError, match="inner has 4 parameters, and had 3"):
        local.sync()


def test_a_worker_alone_whose_gradients_are_nan_goes_back() -> None:
    model = net()
    inner, outer = inner_and_outer(model)
    LocalUpdates(inner, outer, sync_every=2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        learn(model, inner, 0, 2, spoil=True)
    assert "worker 0 at step 2 is not finite" in str(heard[-1].message)
    same(weights(model), weights(net()))
    learn(model, inner, 0, 2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_frozen_weights_stay_whatever_the_outer_optimizer_decays() -> None:
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    inner, outer = torch.optim.SGD([p, q], lr=0.1), torch.optim.SGD([p, q], lr=1.0, weight_decay=0.1)
    LocalUpdates(inner, outer, 1)
    p.grad = torch.ones(1)
    inner.step()
    torch.testing.assert_close(p.detach(), torch.tensor([1 - 0.1 - 0.1]))
    assert q.item() == 1.0


def test_steps_at_a_rate_of_zero_count_once_there_is_a_state() -> None:
    p = nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    local = LocalUpdates(inner, torch.optim.SGD([p], lr=1.0), 10)
    for rate, g in ((0.0, 1.0), (0.0, 0.0), (0.0, 0.0)):
        inner.param_groups[0]["lr"] = rate
        p.grad = torch.full((1,), g)
        inner.step()
    assert local.steps == 3


def test_unfit_parameters_and_roundings_are_refused() -> None:
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    refused(lambda: LocalUpdates(torch.optim.SGD([z]), torch.optim.SGD([z]), 1), "a parameter is complex", TypeError)
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    refused(lambda: LocalUpdates(SGD([p], rounding="kahan"), SGD([p]), 1), "inner must not have rounding='kahan'")
    LocalUpdates(SGD([p]), SGD([p], rounding="kahan"), 1)


def test_a_state_that_the_outer_optimizer_refuses_changes_nothing() -> None:
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    local = LocalUpdates(AdamW([p], lr=0.1), SGD([p], lr=0.7), 2)
    theirs = LocalUpdates(AdamW([q], lr=0.3), AdamW([q], lr=0.7), 2)
    q.grad = torch.ones(2)
    theirs.inner.step()
    with pytest.raises(ValueError, match="method"):
        local.load_state_dict(theirs.state_dict())
    assert local.steps == 0
    assert local.inner.param_groups[0]["lr"] == 0.1
    assert not local.inner.state


def test_inside_torchft() -> None:
    local_sgd = pytest.importorskip("torchft.local_sgd")
    from unittest.mock import create_autospec

    from torchft.manager import Manager

    manager = create_autospec(Manager)
    manager._use_async_quorum = False
    manager.should_commit.return_value = True
    manager.current_step.return_value = 0
    model, other = net(), net()
    inner, outer = inner_and_outer(model, "delayed")
    assert isinstance(outer, DelayedNesterov)
    with local_sgd.DiLoCo(manager, [model], inner, outer, sync_every=3, pin_memory=False):
        learn(model, inner, 0, 6)
    ours, theirs = inner_and_outer(other, "delayed")
    LocalUpdates(ours, theirs, sync_every=3)
    learn(other, ours, 0, 6)
    for a, b in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
