"""MASHA and the communication hook among processes are what they are in one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polyak.distributed
import polyak.optim
from polyak.distributed import MomentumHook
from polyak.optim.solvers.compressors import Compressor, Contractive, Identity, TopK
from tests import ranks
from tests.distributed.jobs import batch, net
from tests.distributed.peers_worker import HOOKS, MISSING, SENT, STEPS, loss_of, players, solver

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they did."""
    folder = tmp_path_factory.mktemp("two")
    cases = [f"masha:{case}" for case in SENT] + [f"hook:{case}" for case in HOOKS]
    others = [
        "masha_resumed",
        "masha_spoiled",
        "masha_seeds",
        "masha_kinds",
        "masha_apart",
        "hook_resumed",
        "hook_registered",
    ]
    others += ["hook_missing:top", "hook_missing:rand", "hook_halves"]
    ranks.launch("distributed.peers_worker", folder, *cases, *others)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three did."""
    folder = tmp_path_factory.mktemp("three")
    cases = ("masha:rand", "masha:both", "hook:rand")
    ranks.launch("distributed.peers_worker", folder, *cases, world=3)
    return folder


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def masha_alone(case: str, workers: int) -> tuple[list[Tensor], list[float], float]:
    params = players()
    one = solver(polyak.optim.solvers, case, params)
    losses = [loss_of(i, params) for i in range(workers)]
    values = [float(one.step(losses)) for _ in range(STEPS)]
    return [p.detach() for p in params], values, one.sent


def check_masha(folder: Path, case: str, workers: int) -> None:
    got, values, sent = ranks.result(folder, f"masha:{case}")
    want, expected, count = masha_alone(case, workers)
    close(got, want)
    assert values == pytest.approx(expected, rel=1e-10)
    assert sent == count


@pytest.mark.parametrize("case", SENT)
def test_masha_of_two_processes_is_that_of_one(two: Path, case: str) -> None:
    check_masha(two, case, 2)


@pytest.mark.parametrize("case", ["rand", "both"])
def test_masha_of_three(three: Path, case: str) -> None:
    check_masha(three, case, 3)


def test_a_masha_is_resumed_bit_for_bit(two: Path) -> None:
    straight, resumed = ranks.result(two, "masha_resumed")
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_a_worker_that_cannot_compute_stops_all_and_changes_nothing(two: Path) -> None:
    for said, same in ranks.result(two, "masha_spoiled"):
        assert "MASHA2: worker 1 could not compute its part" in said
        assert same


def test_workers_at_other_steps_or_without_a_closure_stop_all(two: Path) -> None:
    for steps, closure in ranks.result(two, "masha_apart"):
        assert steps == "MASHA1: worker 1 is at step 1, others at 2; they must meet at one"
        assert closure == "MASHA1: worker 0 could not compute its part"


@pytest.mark.parametrize("case", ["masha_seeds", "masha_kinds"])
def test_workers_whose_coins_or_compressors_would_differ_are_refused(two: Path, case: str) -> None:
    said = ranks.result(two, case)
    assert all("must be the same on all workers; those of [1] differ" in words for words in said)


def test_masha_alone_is_one_worker() -> None:
    params = players()
    one, loss = solver(polyak.distributed, "top", params), loss_of(0, params)
    for _ in range(STEPS):
        one.step(loss)
    close([p.detach() for p in params], masha_alone("top", 1)[0])


def test_biased_compressors_are_for_masha2() -> None:
    with pytest.raises(TypeError, match="compressor must be Unbiased, got TopK; what is biased"):
        polyak.distributed.MASHA1(players(), TopK(3))


def hook_alone(case: str, workers: int, missing: tuple[int, int] = (-1, -1)) -> list[Tensor]:
    """By plain loops: momenta, residuals and what is sent of each worker and parameter.

    ``missing`` is worker and step of a gradient that is NaN: the worker's memories and draws leave it out, and all
    leave out the step.
    """
    momentum, compressor = HOOKS[case]
    model = net()
    hooks = [MomentumHook(model, momentum, compressor, seed=3) for _ in range(workers)]
    for i, one in enumerate(hooks):
        one.workers.rank = i  # draws differ by worker
    memories: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    for t in range(STEPS):
        sent: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
        for i in range(workers):
            model.zero_grad()
            x, y = batch(i, t)
            nn.functional.mse_loss(model(x), y).backward()
            for name, p in model.named_parameters():
                if (i, t) == missing:
                    continue
                m, e = memories.get((i, name), (torch.zeros_like(p.grad), torch.zeros_like(p.grad)))
                m = momentum * m + (1 - momentum) * p.grad
                u = m + e
                step = t + 1 - (i == missing[0] and t > missing[1])
                q = compressor(u.reshape(-1), hooks[i]._generator(name, step)).view(p.shape)
                kept = u - q if isinstance(compressor, Contractive) else torch.zeros_like(q)
                memories[i, name] = (m, kept)
                sent[name].append(q)
        with torch.no_grad():
            for name, p in model.named_parameters() if t != missing[1] else ():
                p -= 0.1 * torch.stack(sent[name]).mean(0)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("case", HOOKS)
def test_momentum_before_the_average(two: Path, case: str) -> None:
    close(ranks.result(two, f"hook:{case}"), hook_alone(case, 2))


def test_momentum_of_three(three: Path) -> None:
    close(ranks.result(three, "hook:rand"), hook_alone("rand", 3))


@pytest.mark.parametrize("case", ["top", "rand"])
def test_a_gradient_that_is_nan_enters_no_memory_and_holds_up_no_one(two: Path, case: str) -> None:
    found, told = ranks.result(two, f"hook_missing:{case}")
    close(found, hook_alone(case, 2, MISSING))
    for worker, (finite, steps) in enumerate(told):
        assert finite == [t != MISSING[1] for t in range(STEPS)]
        assert set(steps.values()) == {STEPS - (worker == MISSING[0])}


def test_a_compressor_that_fails_changes_nothing() -> None:
    class Failing(Identity):
        def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
            return u * (torch.nan if fails else 1)

    fails = False
    hook = MomentumHook(nn.Linear(2, 1), compressor=Failing())
    fails = True
    with pytest.raises(RuntimeError, match="not finite"):
        hook.encoded("weight", torch.ones(1, 2))
    assert hook.state_dict() == {"momenta": {}, "residuals": {}, "steps": {}}


def test_a_hook_belongs_to_one_group_and_module(two: Path) -> None:
    said, takes = ranks.result(two, "hook_registered")
    assert takes
    assert "process_group must be that of the DistributedDataParallel module" in said[0]
    assert "the model has parameters that are not the hook's module's: ['module.first.weight'," in said[1]


def test_memories_and_means_of_halves_are_float32(two: Path) -> None:
    got, dtype = ranks.result(two, "hook_halves")
    assert dtype == torch.float32
    assert got == (1 - 2**-8) / 2  # bfloat16 has this mean
    hook = MomentumHook(nn.Linear(4, 1).bfloat16(), 0.99)
    for _ in range(400):
        sent = hook.encoded("weight", torch.ones(1, 4, dtype=torch.bfloat16))
    assert sent.dtype == torch.bfloat16
    torch.testing.assert_close(hook.momenta["weight"], torch.full((1, 4), 1 - 0.99**400), rtol=1e-4, atol=0)
    hook.load_state_dict({"momenta": {"weight": torch.ones(1, 4).bfloat16()}, "residuals": {}, "steps": {}})
    assert hook.momenta["weight"].dtype == torch.float32


def test_a_hook_is_resumed_bit_for_bit(two: Path) -> None:
    straight, resumed = ranks.result(two, "hook_resumed")
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


class Doubled(Identity):
    """Says that it is unbiased."""

    def compress(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return 2 * u


def test_bad_hooks() -> None:
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got list"):
        MomentumHook([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compressor must be a Compressor, got str"):
        MomentumHook(net(), compressor="top")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="momentum must be in"):
        MomentumHook(net(), momentum=1.0)
    with pytest.raises(ValueError, match="seed must be in"):
        MomentumHook(net(), seed=-1)
    with pytest.raises((ValueError, RuntimeError), match="Doubled"):
        MomentumHook(net(), compressor=Doubled())
    with pytest.raises(TypeError, match="compressor must be a Compressor, got type"):
        MomentumHook(net(), compressor=Compressor)  # type: ignore[arg-type]


def test_memories_of_another_model_are_refused() -> None:
    hook, other = MomentumHook(net()), MomentumHook(nn.Linear(2, 2))
    other.encoded("weight", torch.ones(2, 2))
    with pytest.raises(ValueError, match="momenta of 'weight' must have the shape None, got"):
        hook.load_state_dict(other.state_dict())
    assert not hook.momenta
