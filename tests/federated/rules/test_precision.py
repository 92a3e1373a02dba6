"""Half precision: sums, lengths and bounds are those of the numbers, not of how they are stored."""

import pytest
import torch

from polyak.federated import rules
from polyak.federated.gradients import Batch
from polyak.federated.rules import Message
from polyak.federated.rules.tensors import clipped, mean, norm
from tests.federated.problems import federation, network

HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
def test_a_mean_of_many_is_theirs(dtype):
    many = [{"w": torch.ones(3, dtype=dtype)} for _ in range(3000)]
    assert torch.equal(mean(many)["w"], torch.ones(3, dtype=dtype))
    assert torch.equal(many[0]["w"], torch.ones(3, dtype=dtype))
    big = [{"w": torch.full((2,), 4e4, dtype=dtype)} for _ in range(4)]
    assert torch.equal(mean(big)["w"], big[0]["w"])


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("dtype", HALF)
def test_many_equal_clients_are_one(dtype, weighting):
    rule = rules.FedAvg(weighting=weighting, server_lr=1.0, local_steps=1)
    state = rule.server_state({"w": torch.zeros(2, dtype=dtype)}, 1000)
    update = {"w": torch.ones(2, dtype=dtype)}
    replies = [(i, Message(0, {"update": update, "buffers": {}}, {"examples": 7.0})) for i in range(1000)]
    assert torch.equal(rule.aggregate(state, replies).state.sets["arrays"]["w"], -update["w"])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("value", [1e-4, 6e4])
def test_lengths_whose_squares_do_not_fit(dtype, value):
    a = {"w": torch.full((100,), value, dtype=dtype), "b": torch.full((2, 150), value, dtype=dtype)}
    assert float(norm(a)) == pytest.approx(20 * value, rel=5e-3)
    short = clipped(a, 5 * value)
    assert {t.dtype for t in short.values()} == {dtype}
    assert float(norm(short)) == pytest.approx(5 * value, rel=2e-2)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_dp_brem_plus_takes_what_an_honest_client_has_clipped(dtype):
    h = {"sample_rate": 1.0, "max_grad_norm": 10.0, "client_clip": 0.01, "momentum": 0.0}
    run = federation(rules.DPBREMPlus(**h, noise_multiplier=0.0), model=network().double())
    sets = {n: w.to(dtype) for n, w in run.state.sets["arrays"].items()}
    state = run.rule.server_state(sets, 5)
    replies = []
    for c, (x, y) in run.clients.items():

        class Rounded:
            def per_record(self, weights, buffers, batch):
                found = run.gradient.per_record({n: w.double() for n, w in weights.items()}, buffers, batch)
                return {n: g.to(dtype) for n, g in found.items()}

        held = run.rule.client_state(sets)
        reply, _ = run.rule.client_update(Rounded(), held, run.rule.broadcast(state), [Batch(x, y, 1)], len(y))
        assert float(norm(reply.sets["difference"])) == pytest.approx(0.01, rel=0.02)
        replies.append((c, reply))
    seeds = run.rule.draws("server", state, 5, run.generator)
    assert not run.rule.aggregate(state, replies, seeds).dropped
    far = {n: t * 1.05 for n, t in replies[0][1].sets["difference"].items()}
    replies[0] = (0, Message(0, {**replies[0][1].sets, "difference": far}, {}))
    assert run.rule.aggregate(state, replies, seeds).dropped.keys() == {0}
