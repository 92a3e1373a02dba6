"""How memories are kept and half-precision weights are written: by every method, as the docs say, and resumed."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.memory.storage import square_shape
from polyak.optim import AdamW, Adan, Lion, Optimizer

NAMES = polyak.optim.names()
LOW = ("bfloat16", "int8", "factored")
SHAPES = ((64, 64), (96, 128), (4096,), (40, 3), (17,))


def weights(dtype: torch.dtype = torch.float32, matrices: bool = False) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(1)
    shapes = [s for s in SHAPES if len(s) > 1 or not matrices]
    return [nn.Parameter(torch.randn(s, generator=source).to(dtype)) for s in shapes]


def steps(optimizer: Optimizer, params: list[nn.Parameter], start: int, stop: int) -> None:
    """Steps of a quadratic whose gradient is noisy."""
    for t in range(start, stop):
        source = torch.Generator().manual_seed(t)
        for p in params:
            noise = torch.randn(p.shape, generator=source)
            p.grad = (p.detach().float() + 0.3 * noise).to(p.dtype)
        optimizer.step(loss=sum(p.detach().double().square().sum() / 2 for p in params))


def made(name: str, storage: Any, execution: Any = "batched", **options: Any) -> tuple[Optimizer, list[nn.Parameter]]:
    params = weights(matrices=bool(polyak.optim.get(name).roles))
    return polyak.optim.get(name)(params, state_storage=storage, execution=execution, **options), params


def everything(optimizer: Optimizer, params: list[nn.Parameter]) -> dict[str, Tensor]:
    out = {f"{i}": p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        out |= {f"{i}.{k}": v.clone() for k, v in optimizer.state[p].items()}
    return out


def check_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])] == []


@pytest.mark.parametrize("storage", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_batched_steps_are_eager_steps_bit_for_bit(name: str, storage: str) -> None:
    results = []
    for execution in ("eager", "batched"):
        optimizer, params = made(name, storage, execution)
        steps(optimizer, params, 0, 3)
        results.append(everything(optimizer, params))
    check_same(*results)


def documented(storage: str, numel: int, average: str) -> float:
    """Bytes of one average of a tensor."""
    if storage == "bfloat16":
        return 2 * numel
    if storage == "int8":
        return numel + 4 * numel // 256 if numel >= 4096 and numel % 256 == 0 else 4 * numel
    factors = sum(square_shape(numel))
    return 4 * factors + (numel + 7) // 8 * (average == "signed") if 2 * factors < numel else 4 * numel


@pytest.mark.parametrize("storage", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_as_documented_and_exact_memories_stay(name: str, storage: str) -> None:
    optimizer, params = made(name, storage)
    steps(optimizer, params, 0, 2)
    for p in params:
        chain = optimizer.chain_of(optimizer.param_groups[0]).for_shape(p.shape)
        state = optimizer.state[p]
        for slot in chain.slots:
            if slot.average is None or slot.shape != "param":
                assert state[slot.name].dtype == slot.dtype_for(p.dtype), slot.name
        wanted = 0.0
        for slot in chain.slots:
            if slot.average and slot.shape == "param":
                wanted += documented(storage, p.numel(), slot.average)
            else:
                wanted += 4 * torch.Size(slot.shape_for(p.shape)).numel()
        assert sum(v.nbytes for k, v in state.items() if k != "step") == wanted, tuple(p.shape)


@pytest.mark.parametrize(("storage", "worse"), [("bfloat16", 1.5), ("int8", 1.5), ("factored", 20.0)])
def test_averages_kept_low_train_alike(storage: str, worse: float) -> None:
    """A quadratic: the weights arrive where those of full memories do, with factors, a coarse memory, later."""
    optimizer, params = made("adamw", storage, lr=0.02)
    plain, reference = made("adamw", "float32", lr=0.02)
    steps(optimizer, params, 0, 150)
    steps(plain, reference, 0, 150)
    assert optimizer.state_bytes() < plain.state_bytes() / 1.5
    start = sum(float(w.detach().square().sum()) for w in weights())
    for p in params:
        assert bool(p.isfinite().all())
    ends = [sum(float(w.detach().square().sum()) for w in ws) for ws in (params, reference)]
    assert ends[0] < 0.2 * start and ends[0] < worse * ends[1]


@pytest.mark.parametrize("to", ("float32", *LOW))
@pytest.mark.parametrize("held", ("float32", *LOW))
def test_states_load_across_storages_with_a_word(held: str, to: str) -> None:
    optimizer, params = made("adan", held)
    steps(optimizer, params, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    loaded, others = made("adan", to)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    if held == to:
        loaded.load_state_dict(saved)
        check_same(everything(optimizer, params), everything(loaded, others))
    else:
        with pytest.warns(UserWarning, match=f"keeps memories as {held}, this optimizer as {to}"):
            loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["state_storage"] == to
    steps(optimizer, params, 3, 6)
    steps(loaded, others, 3, 6)
    assert set(loaded.state[others[0]]) == set(made_state("adan", to))
    for p, q in zip(others, params, strict=True):
        if "factored" not in (held, to):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0.02, atol=0.02)
        assert bool(p.isfinite().all())


def made_state(name: str, storage: str) -> dict[str, Tensor]:
    optimizer, params = made(name, storage)
    steps(optimizer, params, 0, 1)
    return optimizer.state[params[0]]


def test_a_storage_changed_in_a_run() -> None:
    """Memories are converted, not begun anew; and those that stay are as they were."""
    optimizer, params = made("adan", "float32")
    steps(optimizer, params, 0, 3)
    before = {k: v.clone() for k, v in optimizer.state[params[0]].items()}
    optimizer.param_groups[0]["state_storage"] = "bfloat16"
    for p in params:
        p.grad = None
    optimizer.step()  # no gradients: nothing but the storage changes
    after = optimizer.state[params[0]]
    assert after["exp_avg"].dtype == torch.bfloat16
    torch.testing.assert_close(after["exp_avg"].float(), before["exp_avg"], rtol=2**-7, atol=1e-6)
    assert torch.equal(after["previous_grad"], before["previous_grad"]) and after["step"] == 3
    optimizer.param_groups[0]["state_storage"] = "float32"
    steps(optimizer, params, 3, 5)
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float32 and optimizer.state[params[0]]["step"] == 5


@pytest.mark.parametrize("storage", LOW)
@pytest.mark.parametrize("name", ["adamw", "lion", "adan"])
def test_a_resumed_run_is_the_same_bit_for_bit(name: str, storage: str) -> None:
    """What is drawn at random depends on tensor and step alone."""
    optimizer, params = made(name, storage)
    steps(optimizer, params, 0, 3)
    buffer = io.BytesIO()
    torch.save((params, optimizer.state_dict()), buffer)
    buffer.seek(0)
    others, saved = torch.load(buffer, weights_only=False)
    resumed = polyak.optim.get(name)(others, state_storage=storage, execution="eager")
    resumed.load_state_dict(saved)
    steps(optimizer, params, 3, 6)
    steps(resumed, others, 3, 6)
    check_same(everything(optimizer, params), everything(resumed, others))


def test_random_rounding_does_not_disturb_other_draws() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    optimizer, params = made("adamw", "bfloat16", rounding="stochastic")
    steps(optimizer, params, 0, 2)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_small_updates_of_bfloat16_weights(rounding: Any, execution: Any) -> None:
    """Each is a twentieth of what bfloat16 resolves at 1; together they are 0.01."""
    w = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = polyak.optim.SGD([w], lr=1e-4, rounding=rounding, execution=execution)
    for _ in range(100):
        w.grad = torch.ones_like(w)
        optimizer.step()
    if rounding == "nearest":
        assert bool((w == 1).all())
    elif rounding == "kahan":
        total = w.detach().double() + optimizer.state[w]["kahan"].double()
        distance = (total - 0.99).abs().max()
        other = ((w.detach().double() - optimizer.state[w]["kahan"].double()) - 0.99).abs().max()
        assert min(float(distance), float(other)) < 1e-4 and w.dtype == torch.bfloat16
    else:  # each element's deviation is below 0.007, that of the mean of 4,096 below 1.1e-4
        assert abs(float(w.detach().double().mean()) - 0.99) < 5e-4 and w.detach().unique().numel() > 2


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_full_precision_weights_are_written_as_ever(rounding: Any) -> None:
    results = []
    for kind in ("nearest", rounding):
        optimizer, params = made("adamw", "float32", rounding=kind)
        steps(optimizer, params, 0, 3)
        results.append(everything(optimizer, params))
    check_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_resumed_run_of_half_precision_is_the_same(rounding: Any, dtype: torch.dtype) -> None:
    params = weights(dtype)
    optimizer = Adan(params, rounding=rounding, execution="batched")
    steps(optimizer, params, 0, 3)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = Adan(others, rounding=rounding, execution="eager")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, params, 3, 6)
    steps(resumed, others, 3, 6)
    check_same(everything(optimizer, params), everything(resumed, others))


@pytest.mark.parametrize("option", [{"state_storage": "float8"}, {"rounding": "up"}])
def test_unknown_words_are_refused(option: dict[str, Any]) -> None:
    (name, value), p = next(iter(option.items())), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"{name} must be one of .*got '{value}'"):
        AdamW([p], **option)
    optimizer = AdamW([p])
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **option})


def test_groups_keep_memories_each_in_its_way() -> None:
    params = weights()
    groups = [{"params": params[:1], "state_storage": "int8"}, {"params": params[1:]}]
    optimizer = Lion(groups, execution="batched")
    steps(optimizer, params, 0, 2)
    assert optimizer.state[params[0]]["exp_avg"].itemsize == 1
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.float32
    assert "memories kept as int8" in optimizer.explain()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_compiled_steps_keep_the_same_bits(storage: Any) -> None:
    results = []
    for execution in ("eager", "compiled"):
        optimizer, params = made("adamw", storage, execution)
        steps(optimizer, params, 0, 4)
        results.append(everything(optimizer, params))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key].float(), value.float(), rtol=2e-2, atol=1e-5, msg=key)


@pytest.mark.parametrize("rounding", ["nearest", "kahan"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_memories_stay_with_their_weights_where_these_are_laid_out_anew(storage: Any, rounding: Any) -> None:
    """A step without a gradient scales the moments, element by element, whatever the order in memory."""
    source = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(16, 16, 4, 4, generator=source).bfloat16())
    optimizer = AdamW([p], lr=0.1, state_storage=storage, rounding=rounding, execution="batched")
    p.grad = torch.randn(p.shape, generator=source).bfloat16()
    gradient = p.grad.float()
    optimizer.step()
    lost = optimizer.state[p]["kahan"].clone() if rounding == "kahan" else None
    p.data = p.data.to(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    p.grad = torch.zeros_like(p)
    optimizer.step()
    chain = optimizer.chain_of(optimizer.param_groups[0])
    (first, *_) = optimizer.keeping_of(optimizer.param_groups[0]).of(chain, p)
    torch.testing.assert_close(first.read(optimizer.state[p], p), 0.09 * gradient, rtol=0.1, atol=3e-4)
    assert first.in_order or optimizer.state[p]["exp_avg"].stride() == p.stride()
    if lost is not None:
        kahan = optimizer.state[p]["kahan"]
        # ties aside, what could not be held is what it was
        assert kahan.stride() == p.stride() and (kahan - lost).abs().mean() < 0.1 * lost.abs().mean()


def test_what_kahan_kept_does_not_outlive_its_use() -> None:
    p = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = AdamW([p], lr=1e-4, rounding="kahan", execution="batched")
    for rounding in ("kahan", "nearest", "kahan"):
        optimizer.param_groups[0]["rounding"] = rounding
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert ("kahan" in optimizer.state[p]) is (rounding == "kahan")
