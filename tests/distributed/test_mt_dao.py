"""MT-DAO among workers: the paper's loop, its limits, and what happens where a worker is apart."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import polyak.optim
from polyak.distributed import MTDAO
from tests import ranks
from tests.distributed.mt_dao_worker import CASES, STEPS, gradients, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


def clipped(g: np.ndarray, rho: float) -> np.ndarray:
    norm = np.sqrt((g * g).sum())
    return g * min(1.0, rho / norm) if rho else g


def transcribed(
    workers: int, steps: int, *, variant: str = "adopt", betas: Any, weight: Any, eps: float = 1e-6, lr: float = 0.05,
    weight_decay: float = 0.0, max_grad_norm: float = 1.0, bias_correction: bool = False, period: int = 32,
    periods: Any = None, sync_first: bool = False, same: bool = False, missing: tuple[int, int] = (-1, -1),
) -> list[np.ndarray]:  # fmt: skip
    """The weights of all workers after the card's algorithm; ``missing``: (worker, step) of a gradient that is NaN."""
    slow, b2 = betas
    every = {
        name: (periods or {}).get(name, period) for name in ["exp_avg_sq", *(f"exp_avg_{j + 1}" for j in range(9))]
    }
    x = [start().numpy().copy() for _ in range(workers)]
    u = [[np.zeros_like(x[0]) for _ in slow] for _ in range(workers)]
    v = [np.zeros_like(x[0]) for _ in range(workers)]
    grads = [gradients(0 if same else m, steps) for m in range(workers)]

    def due(k: int | None, t: int) -> bool:
        return k is not None and (t if sync_first else t + 1) % k == 0

    for t in range(steps):
        sound = [m for m in range(workers) if (m, t) != missing]
        g = [clipped(grads[m][t].numpy(), max_grad_norm) for m in range(workers)]
        h = list(g)
        made = [t - (m == missing[0] and t > missing[1]) for m in range(workers)]
        if variant == "adopt":
            h = [np.clip(g[m] / np.maximum(np.sqrt(v[m]), eps), -(k**0.25), k**0.25) for m, k in enumerate(made)]
        for m in sound:
            u[m] = [b * a + (1 - b) * h[m] for a, b in zip(u[m], slow, strict=True)]
            if variant == "adam":
                v[m] = b2 * v[m] + (1 - b2) * g[m] ** 2
        for j in range(len(slow)):
            if due(every[f"exp_avg_{j + 1}"], t):
                mean = sum(own[j] for own in u) / workers
                for own in u:
                    own[j] = mean
        if variant == "adam" and due(every["exp_avg_sq"], t):
            v = [sum(v) / workers] * workers
        for m in sound:
            if variant == "adopt" and made[m] == 0:
                v[m] = g[m] ** 2
                continue
            reads = [a / (1 - b ** (t + 1)) if bias_correction else a for a, b in zip(u[m], slow, strict=True)]
            d = (1 - sum(weight)) * h[m] + sum(w * a for w, a in zip(weight, reads, strict=True))
            if variant == "adam":
                second = v[m] / (1 - b2 ** (t + 1)) if bias_correction else v[m]
                d = d / (np.sqrt(second) + eps)
            x[m] = x[m] - lr * d - lr * weight_decay * x[m]
            if variant == "adopt":
                v[m] = b2 * v[m] + (1 - b2) * g[m] ** 2
        if variant == "adopt" and due(every["exp_avg_sq"], t):
            v = [sum(v) / workers] * workers
        if due(period, t):
            x = [sum(x) / workers] * workers
    return x


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they did."""
    folder = tmp_path_factory.mktemp("done")
    others = ["missing", "meeting", "alike", "arguments", "joined", "resumed"]
    others += ["late", "lost", "grown", "frozen", "decayed", "grouped"]
    ranks.launch("distributed.mt_dao_worker", folder, *(f"run:{name}" for name in CASES), *(f"run:{o}" for o in others))
    return folder


@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_follow_the_algorithm(done: Path, case: str) -> None:
    for got, want in zip(ranks.result(done, f"run:{case}"), transcribed(2, STEPS, **CASES[case]), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-13)


def test_a_gradient_that_is_nan_makes_no_step_and_holds_up_no_one(done: Path) -> None:
    found, heard = ranks.result(done, "run:missing")
    for got, want in zip(found, transcribed(2, STEPS, **CASES["adam"], missing=(1, 2)), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-13)
    assert heard == [[], ["MTDAO: a gradient of worker 1 is not finite: no local step 3"]]


def test_workers_that_meet_at_different_steps_are_told(done: Path) -> None:
    said = ranks.result(done, "run:meeting")
    assert len(set(said)) == 1
    assert "is at step" in said[0]
    assert "others at" in said[0]


def test_a_first_gradient_that_is_nan_leaves_the_start_to_the_next(done: Path) -> None:
    for got, want in zip(
        ranks.result(done, "run:late"), transcribed(2, STEPS, **CASES["adopt"], missing=(1, 0)), strict=True
    ):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-13)


def test_weights_that_are_nan_enter_no_mean(done: Path) -> None:
    found, heard = ranks.result(done, "run:lost")
    own = {name: value for name, value in CASES["adopt"].items() if name != "period"}
    p = Parameter(start())
    optimizer = polyak.optim.MTDAO([p], lr=0.05, **own)
    for g in gradients(0, STEPS)[:3]:
        p.grad = g
        optimizer.step()
    for got in found:
        torch.testing.assert_close(got, p.detach(), rtol=1e-11, atol=1e-13)
    assert heard == [["MTDAO: weights of worker 1 are not finite: they take the others' at step 3"]] * 2


def test_a_copy_shares_the_process_group_and_a_pickle_of_it_is_refused(done: Path) -> None:
    shares, said = ranks.result(done, "run:grouped")
    assert shares
    assert all("what was made with a group of its own cannot be unpickled" in words for words in said)


@pytest.mark.parametrize("kind", [polyak.optim.MTDAO, MTDAO])
def test_a_weight_that_comes_later_starts_from_its_own_gradient(kind: Any) -> None:
    first, late = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    optimizer = kind([first], lr=0.01, weight=0.0, max_grad_norm=0.0)
    for t in range(12):
        if t == 7:
            optimizer.add_param_group({"params": [late]})
        for p in (first, late)[: 1 + (t >= 7)]:
            p.grad = torch.tensor([1.0, -2.0])
        optimizer.step()
    # every step but the first is lr * sign(g) where g does not change
    torch.testing.assert_close(first.detach(), torch.tensor([-0.11, 0.11]))
    torch.testing.assert_close(late.detach(), torch.tensor([-0.04, 0.04]))


@pytest.mark.parametrize("case", ["alike", "arguments", "grown", "frozen", "decayed"])
def test_other_workers_are_refused_at_the_start(done: Path, case: str) -> None:
    assert all("must be the same on all workers; those of [1] differ" in s for s in ranks.result(done, f"run:{case}"))


def test_one_that_joins_takes_all(done: Path) -> None:
    (p, memories, made), (other, theirs, counted) = ranks.result(done, "run:joined")
    assert torch.equal(p, other)
    assert made == counted == 5
    assert memories.keys() == theirs.keys()
    assert all(torch.equal(memories[name], theirs[name]) for name in memories)


def test_a_resumed_run_is_the_same_bit_for_bit(done: Path) -> None:
    straight, resumed = ranks.result(done, "run:resumed")
    assert torch.equal(straight, resumed)


def alone(make: Any, steps: int = STEPS, worker: int = 0) -> Tensor:
    p = Parameter(start())
    optimizer = make([p])
    for g in gradients(worker, steps):
        p.grad = g.clone()
        optimizer.step()
    return p.detach().clone()


@pytest.mark.parametrize("variant", ["adopt", "adam", "sgdm"])
@pytest.mark.parametrize("period", [1, 3])
def test_one_worker_is_the_local_method(variant: str, period: int) -> None:
    options: dict[str, Any] = {"variant": variant, "betas": ((0.99,), 0.999), "weight": (0.9,), "lr": 0.05}
    ours = alone(lambda p: MTDAO(p, period=period, execution="eager", **options))
    torch.testing.assert_close(ours, alone(lambda p: polyak.optim.MTDAO(p, **options)), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("variant", ["adopt", "adam", "sgdm"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_workers_alike_are_one(variant: str, k: int) -> None:
    options: dict[str, Any] = {"variant": variant, "betas": ((0.9, 0.99), 0.999), "weight": (0.3, 0.6), "period": k}
    many = transcribed(3, STEPS, **options, same=True)
    np.testing.assert_allclose(alone(lambda p: MTDAO(p, lr=0.05, **options)).numpy(), many[0], rtol=1e-12)


def test_sgdm_averaged_at_every_step_is_momentum_on_the_mean_gradient() -> None:
    options: dict[str, Any] = {"variant": "sgdm", "betas": ((0.9,), 0.999), "weight": (1.0,), "max_grad_norm": 0.0}
    found = transcribed(4, STEPS, **options, period=1)
    u, x = np.zeros_like(found[0]), start().numpy().copy()
    for t in range(STEPS):
        u = 0.9 * u + 0.1 * np.mean([gradients(m, STEPS)[t].numpy() for m in range(4)], axis=0)
        x = x - 0.05 * u
    np.testing.assert_allclose(found[0], x, rtol=1e-12)


def test_numbers_stand_for_one_moment() -> None:
    a = alone(lambda p: polyak.optim.MTDAO(p, betas=(0.99, 0.999), weight=0.9))
    assert torch.equal(a, alone(lambda p: polyak.optim.MTDAO(p, betas=((0.99,), 0.999), weight=(0.9,))))


def test_a_moment_that_forgets_a_period_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"beta\^K = 0.9\^32 = 0.034: the moment forgets the sync"):
        MTDAO([Parameter(start())], betas=((0.9,), 0.999), period=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MTDAO([Parameter(start())], betas=((0.9, 0.999), 0.999), weight=(0.1, 0.8), period=32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": (1.1,)}, "weight must be numbers >= 0 that sum to at most 1"),
        ({"weight": (-0.1,)}, "weight must be numbers"),
        ({"weight": (0.5, 0.4)}, "weight must be 1 numbers, one for each moment"),
        ({"betas": ((1.0,), 0.9)}, "betas must be"),
        ({"betas": ((0.9,), -0.1)}, "betas must be"),
        ({"betas": 0.9}, "betas must be"),
        ({"period": 0}, "period must be in"),
        ({"period": None}, "period must be a number"),
        ({"periods": {"exp_avg_1": 0}}, r"periods\['exp_avg_1'\] must be in"),
        ({"periods": {"exp_avg_2": 3}}, r"periods must be of \['exp_avg_1', 'exp_avg_sq'\], got 'exp_avg_2'"),
        ({"bias_correction": True}, "bias_correction is of 'adam' and 'sgdm'"),
        ({"check_finite": True}, "check_finite must be False"),
        ({"rounding": "kahan"}, "rounding must be 'nearest' or 'stochastic', got 'kahan'"),
        ({"state_storage": "int8"}, "state_storage must be 'float32'"),
        ({"variant": "lion"}, "variant must be one of"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        MTDAO([Parameter(start())], **options)


def test_a_sparse_gradient_is_refused_and_nothing_has_changed() -> None:
    p = Parameter(start())
    optimizer = MTDAO([p], period=2)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    p.grad = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1, dtype=torch.float64), p.shape)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(p.detach(), start())
    assert optimizer.state_dict()["state"] == before


def test_it_can_be_copied() -> None:
    p = Parameter(start())
    optimizer = copy.deepcopy(MTDAO([p], period=2, lr=0.05))
    (q,) = optimizer.param_groups[0]["params"]
    for g in gradients(0, STEPS):
        q.grad = g.clone()
        optimizer.step()
    assert torch.equal(q.detach(), alone(lambda params: MTDAO(params, period=2, lr=0.05)))
