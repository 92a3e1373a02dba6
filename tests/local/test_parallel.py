"""Two processes: the pipeline of blocks equals training in turn, and a lost neighbour is an error, not a wait."""

import pytest
import torch

from polyak.local import MAN, Greedy, LocalNetwork, local_backward
from tests import ranks
from tests.local import kinds, worker
from tests.ranks import KILLED, result

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=lambda m, name=name: f"{name}: {m}")


# The digits say how many of the four blocks each rank has.
PIPELINES = ["greedy", "dgl", "auglocal", "infopro", "man", "man:31", "man:13", "man-infopro", "paper-inside"]
REPLICAS = ["plain", "last", "no_sync"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Where two ranks have done everything that ends well."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = [f"pipeline:{case}" for case in PIPELINES] + [f"replicated:{case}" for case in REPLICAS] + ["refused"]
    ranks.launch("local.worker", folder, *cases)
    return folder


@pytest.mark.parametrize("case", PIPELINES)
def test_pipeline_equals_training_in_turn(done, case):
    expected = worker.sequential(case.split(":")[0])
    assert_same(result(done, f"pipeline:{case}"), expected)
    assert_same(torch.load(done / f"rank1-{case.replace(':', '')}.pt"), expected)


@pytest.mark.parametrize(
    ("case", "expect", "rank", "lost"),
    [
        ("dies:1", (worker.LOST, KILLED), 0, "rank 0 of the pipeline lost"),
        ("dies:0", (KILLED, worker.LOST), 1, "rank 1 of the pipeline lost rank 0: it has ended"),
        ("raises:1", (worker.LOST, 1), 0, "rank 0 of the pipeline lost"),
        ("silent", (worker.LOST, 0), 0, "has not answered within 0:00:02"),
        ("absent", (worker.LOST, 0), 0, "rank 0 of the pipeline lost rank 1"),
        ("forgetful", (worker.LOST, 0), 0, "rank 0 of the pipeline lost rank 1"),
    ],
)
def test_a_lost_neighbour_is_an_error(tmp_path, case, expect, rank, lost):
    output = ranks.launch("local.worker", tmp_path, case, expect=expect)
    assert lost in output[rank]
    if case == "raises:1":
        assert "my own mistake" in output[1]


def test_refusals(done):
    first, second, third, fourth, cuts, split = result(done, "refused")
    assert first == "split must be 2 numbers from 1 on that add up to 4 blocks, got [4, 0]"
    assert second.endswith("got [1, 1]")
    assert "variant must not be 'paper'" in third
    assert fourth == "batches must be given on rank 0, and on no other"
    assert cuts == split
    assert cuts.startswith("network and split must be the same on all ranks") and "of rank 1 are not" in cuts


@pytest.mark.parametrize("accumulate", REPLICAS)
def test_replicas_are_one_process(done, accumulate):
    torch.manual_seed(1)
    net = LocalNetwork(kinds.mlp().double(), 3, MAN(Greedy(), momentum=0.5), example=torch.rand(2, 6).double())
    optimizer = worker.make_optimizer(list(net.trainable_parameters()))
    for step in range(4):
        optimizer.zero_grad()
        local_backward(net, *worker.whole(step))
        optimizer.step()
    expected = worker.state(net)
    assert_same(result(done, f"replicated:{accumulate}"), expected)
    assert_same(torch.load(done / f"rank1-{accumulate}.pt"), expected)


def test_a_rank_in_the_middle(tmp_path):
    ranks.launch("local.worker", tmp_path, "pipeline:man", expect=(0, 0, 0))
    assert_same(result(tmp_path, "pipeline:man"), worker.sequential("man"))
