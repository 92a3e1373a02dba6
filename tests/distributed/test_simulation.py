"""The simulated clock: who is heard when, what enters the weights, and that a run goes on where it was."""

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from polyak.distributed import DelayedNesterov
from polyak.distributed.simulation import Job, Server, Shards, Simulation, local_steps, sync_weight
from polyak.optim import SGD

SPEEDS = (1.0, 0.5, 0.25, 2.0)


def start() -> Parameter:
    return Parameter(torch.ones(3, dtype=torch.float64))


def server(rule: str = "each", workers: int = 4, **options: Any) -> Server:
    p = [start()]
    outer: torch.optim.Optimizer = SGD(p, lr=0.5, momentum=0.9, nesterov=True, execution="eager")
    if rule == "delayed":
        outer, rule = DelayedNesterov(p, lr=0.5, buffer_size=workers, execution="eager"), "each"
    return Server(outer, workers, rule, **options)  # type: ignore[arg-type]


def train(job: Job) -> list[Tensor]:
    """Heavy ball on ``x^2 / 2`` with noise of a generator that is the worker's own."""
    (x,) = (w.clone() for w in job.weights)
    m = job.memory.get("m", torch.zeros_like(x))
    generator = torch.Generator().manual_seed(job.worker)
    generator.set_state(job.memory.get("generator", generator.get_state()))
    for i in range(job.steps):
        noise = torch.randn(3, generator=generator, dtype=torch.float64)
        m = 0.5 * m + x + 0.1 * noise
        x = x - (job.rates[i] if job.rates else 0.05) * m
    job.memory.update(m=m, generator=generator.get_state())
    return [x]


def ends(*values: float) -> Any:
    """A worker that ends at its own value."""
    return lambda job: [torch.full_like(job.weights[0], values[job.worker])]


def test_workers_are_heard_in_the_order_in_which_they_finish() -> None:
    simulation = Simulation(server(), train, SPEEDS, 2)
    found = [simulation.advance() for _ in range(6)]
    times = [[(a.time, a.worker) for a in heard] for heard in found]
    assert times == [[(1.0, 3)], [(2.0, 0), (2.0, 3)], [(3.0, 3)], [(4.0, 0), (4.0, 1), (4.0, 3)], [(5.0, 3)],
                     [(6.0, 0), (6.0, 3)]]  # fmt: skip
    assert [a.staleness for heard in found for a in heard] == [0, 1, 1, 0, 1, 5, 2, 0, 1, 1]
    assert simulation.time == 6.0
    assert simulation.local_steps == 2 * 10


def test_a_grace_period_brings_arrivals_together() -> None:
    simulation = Simulation(server(), train, SPEEDS, 2, max_wait=1.0)
    assert [a.worker for a in simulation.advance()] == [3, 0]
    assert simulation.time == 2.0
    assert [a.worker for a in simulation.advance()] == [3, 0, 1]
    assert simulation.time == 4.0


def test_who_waits_for_all_is_synchronous() -> None:
    simulation = Simulation(server("mean"), ends(1.0, 0.0, 3.0, 0.0), SPEEDS, 2, max_wait=math.inf)
    heard = simulation.advance()
    assert sorted(a.worker for a in heard) == [0, 1, 2, 3]
    assert {a.staleness for a in heard} == {0}
    assert simulation.time == 8.0
    want = start()
    want.grad = torch.zeros_like(want)  # the mean of 1 - 1, 1 - 0, 1 - 3 and 1 - 0
    SGD([want], lr=0.5, momentum=0.9, nesterov=True).step()
    torch.testing.assert_close(simulation.server.params[0], want)


def test_arrivals_together_are_one_step_of_the_mean() -> None:
    delayed, together = server("delayed"), server("mean")
    values = ends(0.5, 2.0, -1.0, 0.0)
    for one in (delayed, together):
        Simulation(one, values, [1.0] * 4, 1, max_wait=math.inf).advance()
    torch.testing.assert_close(delayed.params[0], together.params[0], rtol=1e-13, atol=0)
    assert delayed.arrivals == together.arrivals == 4


@pytest.mark.parametrize("rule", ["each", "buffered", "delayed", "mean"])
@pytest.mark.parametrize("wait", [0.0, 0.7])
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_run_goes_on_bit_for_bit(rule: str, wait: float, stop: int) -> None:
    def made() -> Simulation:
        shards = Shards(3, 40, 0.1, warmup=4, seed=1)
        return Simulation(server(rule, max_staleness=6), train, SPEEDS, [4, 3, 2, 5], max_wait=wait, shards=shards)

    straight = made()
    for _ in range(stop):
        straight.advance()
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = made()
    resumed.load_state_dict(torch.load(file))
    assert [straight.advance() for _ in range(9)] == [resumed.advance() for _ in range(9)]
    assert torch.equal(straight.server.params[0], resumed.server.params[0])
    assert straight.server.dropped == resumed.server.dropped
    assert str(straight.state_dict()) == str(resumed.state_dict())


def test_a_thousand_workers() -> None:
    speeds = [1 + (i * 7919 % 1000) / 250 for i in range(1000)]
    steps = local_steps(speeds, 20)
    simulation = Simulation(server("delayed", 1000), ends(*[0.0] * 1000), speeds, steps)
    simulation.run(20_000)
    assert abs(float(simulation.server.params[0].detach().abs().max())) < 1
    assert len(simulation.workers) == 1000
    assert len(simulation._snapshots) <= 1001


def test_a_worker_that_dies_gives_back_its_shard() -> None:
    shards = Shards(4, 10, 0.1)
    simulation = Simulation(server(), train, SPEEDS, 2, shards=shards)
    assert shards.visits == [1, 1, 1, 1]
    simulation.die(1)
    assert sorted(shards.visits) == [0, 1, 1, 1]
    heard = [a.worker for _ in range(6) for a in simulation.advance()]
    assert 1 not in heard
    simulation.join(1, 4.0, 2)
    assert 1 in [a.worker for _ in range(3) for a in simulation.advance()]
    for worker in simulation.workers:
        simulation.die(worker)
    with pytest.raises(RuntimeError, match="no worker is left"):
        simulation.advance()


def test_a_delta_that_is_not_finite_is_dropped() -> None:
    simulation = Simulation(server("delayed"), ends(1.0, math.nan, 0.5, 0.5), [1.0] * 4, 1)
    with pytest.warns(UserWarning, match="a delta is not finite and is dropped"):
        heard = simulation.advance()
    assert [a.outcome for a in heard] == ["applied", "not finite", "applied", "applied"]
    assert simulation.server.arrivals == 3
    assert simulation.server.dropped == {"not finite": 1, "too stale": 0}
    assert simulation.server.params[0].isfinite().all()


def test_a_train_that_raises_loses_no_worker_and_no_step() -> None:
    calls: list[int] = []

    def flaky(job: Job) -> list[Tensor]:
        calls.append(job.worker)
        if len(calls) == 4:
            raise OSError("flaky")
        return [w - rate for w in job.weights for rate in job.rates[:1]]

    def made(function: Any) -> Simulation:
        return Simulation(server("mean"), function, SPEEDS, 2, shards=Shards(4, 40, 0.1), max_wait=math.inf)

    broken, sound = made(flaky), made(lambda job: [w - rate for w in job.weights for rate in job.rates[:1]])
    with pytest.raises(OSError, match="flaky"):
        broken.advance()
    assert broken.shards is not None
    assert broken.shards.steps == [0] * 4
    for _ in range(3):
        assert broken.advance() == sound.advance()
    assert torch.equal(broken.server.params[0], sound.server.params[0])
    broken.die(0)
    broken.join(0, 1.0, 2)


def test_a_state_of_another_model_leaves_the_shards_as_they_are() -> None:
    def made(size: int) -> Simulation:
        outer = SGD([Parameter(torch.zeros(size))], lr=1.0)
        return Simulation(Server(outer, 2), lambda job: [w - 0.1 for w in job.weights], [1.0, 2.0], 5,
                          shards=Shards(2, 100, 0.1))  # fmt: skip

    here, there = made(2), made(3)
    there.run(50)
    assert here.shards is not None
    before = here.shards.state_dict()
    with pytest.raises(ValueError, match="weights of shapes"):
        here.load_state_dict(there.state_dict())
    assert here.shards.visits == before["visits"]
    assert here.shards.steps == before["steps"]


@pytest.mark.parametrize("rule", ["buffered", "mean"])
def test_sums_of_bfloat16_are_float32(rule: Any) -> None:
    p = Parameter(torch.zeros(1, dtype=torch.bfloat16))
    one = Server(torch.optim.SGD([p], lr=1.0), 1000, rule=rule)
    one.receive_all([[torch.ones(1, dtype=torch.bfloat16)]] * 1000, [0] * 1000)
    assert p.item() == -1.0


def test_what_is_too_stale_is_dropped() -> None:
    simulation = Simulation(server(max_staleness=1), train, SPEEDS, 2)
    outcomes = {a.worker: a.outcome for _ in range(4) for a in simulation.advance()}
    assert outcomes[1] == "too stale"
    assert simulation.server.dropped["too stale"] >= 1


def test_a_delta_can_be_scaled_by_the_steps() -> None:
    plain, scaled = (server("mean", 2) for _ in range(2))
    Simulation(plain, ends(0.5, 0.5), [1.0, 2.0], [1, 2], max_wait=math.inf).advance()
    Simulation(scaled, ends(0.5, 0.5), [1.0, 2.0], [1, 2], max_wait=math.inf, rescale_by_steps=True).advance()
    torch.testing.assert_close(1 - scaled.params[0], 1.5 * (1 - plain.params[0]))


@settings(deadline=None)
@given(speeds=st.lists(st.floats(0.1, 100), min_size=1, max_size=9), most=st.integers(5, 90))
def test_dylu(speeds: list[float], most: int) -> None:
    found = local_steps(speeds, most)
    assert max(found) == most
    assert all(
        h == 5 or abs(h + 0.5 - most * v / max(speeds)) <= 0.5 + 1e-6 for h, v in zip(found, speeds, strict=True)
    )


def test_weights_of_arrivals() -> None:
    assert sync_weight("one", 4) == 1.0
    assert sync_weight("constant", 4) == 0.5
    assert sync_weight("polynomial", 4, 3) == 0.25


def test_rates_of_shards() -> None:
    shards = Shards(2, 10, 0.4, warmup=2)
    assert shards.rates(0, 2) == [0.2, 0.4]
    shards.done(0, 6)
    assert shards.rates(0, 1)[0] == pytest.approx(0.2)
    assert shards.rates(1, 1) == [0.2]
    shards.done(0, 40)
    assert shards.rates(0, 1) == [0.0]


def unchanged(one: Server, act: Any, words: str) -> None:
    before = str(one.state_dict())
    with pytest.raises(ValueError, match=words):
        act()
    assert str(one.state_dict()) == before


def test_bad_arrivals() -> None:
    one = server()
    one.receive([torch.ones(3, dtype=torch.float64)], 0)
    unchanged(one, lambda: one.receive([torch.ones(2)], 0), r"delta must have the shapes \[\(3,\)\], got \[\(2,\)\]")
    unchanged(one, lambda: one.receive([], 0), "delta must have the shapes")
    good: Sequence[Tensor] = [torch.ones(3, dtype=torch.float64)]
    unchanged(one, lambda: one.receive(good, 2), r"version must be in \[0, 1\], the arrivals so far, got 2")
    unchanged(one, lambda: one.receive(good, -1), "version must be in")
    other = Server(SGD([Parameter(torch.ones(2))], lr=0.1), 2).state_dict()
    unchanged(one, lambda: one.load_state_dict(other), "the state_dict has weights of shapes")


def test_bad_arguments() -> None:
    p = [start()]
    cases: list[tuple[Any, str]] = [
        (lambda: Server("sgd", 2), "outer must be a torch.optim.Optimizer"),
        (lambda: Server(SGD(p), 0), "num_workers must be in"),
        (lambda: Server(SGD(p), 2, "some"), "rule must be one of"),
        (lambda: Server(SGD(p), 2, "each", "square"), "weight must be one of"),
        (lambda: Server(SGD(p), 2, "mean", "constant"), "weight must be 'one' with rule='mean'"),
        (lambda: Server(SGD(p), 2, max_staleness=-1), "max_staleness must be in"),
        (lambda: Simulation(server(), train, [0.0, 1.0]), "speeds must be in"),
        (lambda: Simulation(server(), train, [1.0, 1.0], 0), "steps must be in"),
        (lambda: Simulation(server(), train, [1.0, 1.0], [1]), "steps must be as many as the 2 speeds, got 1"),
        (lambda: Simulation(server(), train, [1.0], max_wait=-1.0), "max_wait must be in"),
        (lambda: Simulation(server(), train, [1.0]).join(0, 1.0, 2), "worker 0 is there already"),
        (lambda: Simulation(server(), train, [1.0]).die(3), r"there is no worker 3; there are \[0\]"),
        (lambda: Simulation(server(), lambda job: [], [1.0]).advance(), "train must return weights of the shapes"),
        (lambda: Shards(0, 3, 0.1), "count must be in"),
        (lambda: Shards(2, 3, 0.1, warmup=3), "warmup must be below the budget of 3"),
        (lambda: Shards(2, 3, -0.1), "lr must be in"),
        (lambda: local_steps([], 3), "speeds must be one number or more"),
        (lambda: local_steps([1.0], 0), "most must be in"),
        (lambda: local_steps([1.0], 3, 0), "least must be in"),
    ]
    for make, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            make()
