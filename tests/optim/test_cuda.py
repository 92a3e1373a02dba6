"""Steps on a GPU: equal to eager ones, in every kind of tensor, without waiting for the device or taking its memory."""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import polyak.optim
from polyak.optim import SGD, AdamW, Adan, Lion

pytestmark = pytest.mark.gpu
SHAPES = ((300, 200), (64,), (32, 16, 3, 3), (131, 7), (9, 2), (5,), (1,), (), (0, 4), (70000,))
METHODS = [name for name in polyak.optim.names() if name != "muon"]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator).to("cuda", dtype) for s in SHAPES]
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    return [nn.Parameter(t) for t in tensors]


def matrices(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in params if p.ndim > 1 and p.numel()]


def give_gradients(params: list[nn.Parameter], t: int) -> None:
    generator = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 5) -> list[nn.Parameter]:
    for t in range(steps):
        give_gradients(params, t)
        optimizer.step(**({"loss": 1.0} if isinstance(optimizer, polyak.optim.Optimizer) else {}))
    return params


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("execution", ["auto", "batched", "compiled"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_are_eager_steps(name: str, execution: str, dtype: torch.dtype) -> None:
    params, reference = weights(dtype), weights(dtype)
    kind = polyak.optim.get(name)
    train(kind(params, execution=execution), params)
    train(kind(reference, execution="eager"), reference)
    tolerance = 2e-4 if dtype == torch.float32 else 2e-2
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("execution", ["auto", "batched", "compiled"])
def test_muon_steps_are_eager_steps(execution: str) -> None:
    params, reference = matrices(weights()), matrices(weights())
    train(polyak.optim.Muon(params, execution=execution), params)
    train(polyak.optim.Muon(reference, execution="eager"), reference)
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("execution", ["batched", "compiled"])
@pytest.mark.parametrize("name", polyak.optim.names())
def test_a_step_waits_for_nothing(name: str, execution: str) -> None:
    params = matrices(weights()) if polyak.optim.get(name).roles else weights()
    optimizer = polyak.optim.get(name)(params, execution=execution)
    train(optimizer, params)
    give_gradients(params, 5)
    with no_waiting():
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("name", ["adamw", "adan", "lion", "cadamw", "adamp", "tam"])
def test_a_compiled_step_takes_little_memory(name: str) -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(1024, 1024, device="cuda")) for _ in range(8)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = polyak.optim.get(name)(params, execution="compiled")
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 8 * 4 * 1024**2 // 20


@pytest.mark.parametrize("infinite", [False, True])
def test_a_step_that_the_scaler_skips_changes_nothing(infinite: bool) -> None:
    params = weights()
    optimizer, scaler = AdamW(params), torch.amp.GradScaler("cuda", init_scale=8.0)
    train(optimizer, params, 2)
    plain, plain_params = copy.deepcopy((optimizer, params))
    give_gradients(params, 9)
    give_gradients(plain_params, 9)
    scaler.scale(torch.zeros((), device="cuda"))
    for p in params:
        assert p.grad is not None
        p.grad.mul_(8.0)
    if infinite:
        assert params[0].grad is not None
        params[0].grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    if not infinite:
        plain.step()
    for p, q in zip(params, plain_params, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


@pytest.mark.parametrize("execution", ["batched", "compiled"])
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_tensor_lr_is_read_on_the_device(where: str, execution: str) -> None:
    params, reference = weights(), weights()
    train(AdamW(params, lr=torch.tensor(0.01, device=where), execution=execution), params)
    train(AdamW(reference, lr=0.01, execution="eager"), reference)
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [AdamW, Adan, Lion])
def test_one_optimizer_for_both_devices(kind: type[polyak.optim.Optimizer]) -> None:
    there = weights()
    here = [nn.Parameter(p.detach().cpu()) for p in there]
    optimizer = kind([*there, *here])
    for t in range(5):
        give_gradients(there, t)
        give_gradients(here, t)
        optimizer.step()
    for p, q in zip(there, here, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-4, atol=1e-5)
        assert all(v.device == p.device for k, v in optimizer.state[p].items() if k != "step")


@pytest.mark.parametrize("execution", ["eager", "batched", "compiled"])
def test_a_checkpoint_goes_to_another_device(execution: str) -> None:
    params = weights()
    optimizer = AdamW(params, execution=execution)
    train(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    here = [nn.Parameter(p.detach().cpu()) for p in params]
    other = AdamW(here, execution=execution)
    other.load_state_dict(torch.load(file, map_location="cuda"))
    for t in (7, 8):
        give_gradients(params, t)
        give_gradients(here, t)
        optimizer.step()
        other.step()
    for p, q in zip(params, here, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("execution", ["batched", "compiled"])
def test_sgd_and_adamw_of_torch(execution: str) -> None:
    for ours, theirs in (
        (SGD, lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9)),
        (AdamW, lambda ps: torch.optim.AdamW(ps, 0.1)),
    ):
        params, reference = weights(), weights()
        options = {"momentum": 0.9} if ours is SGD else {}
        train(ours(params, lr=0.1, execution=execution, **options), params)
        train(theirs(reference), reference)
        for p, q in zip(params, reference, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)
