"""One update whatever the compiler does, under every mode and switch of torch; and nothing of torch stays patched.

Weights are float64 and small or alike, so that the compiled runs here share a few packages with other tests.
"""

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import polyak.optim
from polyak import aot
from polyak.aot import obtain, report
from polyak.optim import AdamW, CAdamW, Optimizer
from polyak.optim.engine import units
from tests.optim.fresh import python

LARGE = (40, 500)
SHAPES = ((6, 4), (9,), LARGE, (5, 1), ())


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine and a compiler that know nothing yet."""
    monkeypatch.setattr(obtain, "_state", obtain._State())
    monkeypatch.setattr(report, "_said", set())
    monkeypatch.setattr(units, "_compiled", {})


def weights() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=source, dtype=torch.float64)) for s in SHAPES]


def give(params: list[nn.Parameter], t: int) -> None:
    source = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source, dtype=torch.float64)


def trained(method: type[Optimizer], execution: Any, around: Callable[[int], AbstractContextManager[Any]]) -> list[Any]:
    params = weights()
    optimizer = method(params, lr=0.1, execution=execution)
    for t in range(4):
        give(params, t)
        with around(t):
            optimizer.step()
    return [*params, *(v for p in params for _, v in sorted(optimizer.state[p].items()))]


def check_equal(method: type[Optimizer], around: Callable[[int], AbstractContextManager[Any]]) -> None:
    plain = trained(method, "eager", lambda t: nullcontext())
    for got, wanted in zip(trained(method, "compiled", around), plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


class Watching(TorchDispatchMode):
    """Sees every operation and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def kernels() -> dict[tuple[Any, ...], Any]:
    """What is known of each kernel: by its variant, whether it is for small tensors, and its device."""
    return {key: run for own in units._compiled.values() for key, run in own.items()}


def test_compiled_steps_are_eager_steps(fresh: None) -> None:
    """And they are compiled: of two sizes, AdamW has two kernels."""
    check_equal(AdamW, lambda t: nullcontext())
    assert [key[-2] for key in kernels()] == [True, False] and all(kernels().values())


@pytest.mark.parametrize("first", [0, 1, 2])
def test_one_update_under_a_dispatch_mode(first: int) -> None:
    """In the first steps, or later when kernels are there and calls are prepared; other steps are compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_equal(AdamW, lambda t: Watching() if t >= first and t != first + 1 else nullcontext())
    assert aot.failed() is None


def test_one_update_under_a_flop_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    check_equal(AdamW, lambda t: FlopCounterMode(display=False) if t % 2 else nullcontext())


def test_a_fake_step_between_real_ones_changes_nothing_real() -> None:
    params = weights()
    optimizer = AdamW(params, lr=0.1, execution="compiled")
    give(params, 0)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    with FakeTensorMode():
        w = nn.Parameter(torch.ones(6, 4, dtype=torch.float64))
        other = AdamW([w], execution="compiled")
        w.grad = torch.ones_like(w)
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    optimizer.step()
    assert float(optimizer.state[params[0]]["step"]) == 2


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_compiling_switched_off_by_variable(fresh: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.warns(RuntimeWarning, match=f"{name}=1.*without compiling") as told:
        check_equal(AdamW, lambda t: nullcontext())
    assert len(told) == 1 and not any(kernels().values())
    assert f"{name}=1" in AdamW(weights(), execution="compiled").explain()
    monkeypatch.delenv(name)
    assert "AdamW: compiled" in AdamW(weights(), execution="compiled").explain(), "not for ever"


def test_compiling_switched_off_and_on_in_the_middle(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def around(t: int) -> AbstractContextManager[Any]:
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "01"[t in (1, 2)])
        return nullcontext()

    with pytest.warns(RuntimeWarning, match="switched off"):
        check_equal(AdamW, around)
    assert all(kernels().values()), "a switch is no failure"


def test_no_compiler(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("POLYAK_CACHE", str(tmp_path))
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(obtain, "temporary", lambda process: tmp_path / "own")
    monkeypatch.setattr(obtain, "missing_compiler", lambda: "there is no C++ compiler")
    with pytest.warns(RuntimeWarning, match=r"there is no C\+\+ compiler.*batched") as told:
        check_equal(CAdamW, lambda t: nullcontext())
    assert len(told) == 1
    assert "nothing can be compiled" in CAdamW(weights(), execution="compiled").explain()


@pytest.mark.parametrize("method", [AdamW, CAdamW])
def test_a_compilation_that_fails(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, method: type[Optimizer]
) -> None:
    """It is tried once a kernel, told once, and the steps are made once."""
    tried = []

    def build(source: Any, *args: Any, **kwargs: Any) -> None:
        tried.append(source.key())
        raise OSError("no room\nand more")

    monkeypatch.setenv("POLYAK_CACHE", str(tmp_path))
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(obtain, "temporary", lambda process: tmp_path / "own")
    monkeypatch.setattr(obtain, "build", build)
    with pytest.warns(RuntimeWarning, match="is not compiled.*no room") as told:
        check_equal(method, lambda t: nullcontext())
    assert len({str(w.message) for w in told}) == len(told)
    assert max(map(tried.count, tried)) <= 2 and len(set(tried)) == 2  # a second time for another kind of CPU


@pytest.mark.parametrize("good", [0, 1])
def test_one_kernel_of_two_is_there(fresh: None, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """The compiler gives up in the middle of a step: what is done is not done again."""
    load, asked = aot.load, []

    def sometimes(source: Any) -> Any:
        asked.append(source)
        return load(source) if len(asked) == good + 1 else None

    monkeypatch.setattr(aot, "load", sometimes)
    check_equal(AdamW, lambda t: nullcontext())


def test_torch_is_as_before_when_threads_compile_at_once(fresh: None) -> None:
    """Four methods at once in threads; what torch runs for others is neither replaced nor watched."""
    from torch._inductor.output_code import CompiledFxGraph

    before, results = CompiledFxGraph.__call__, {}

    def train(name: str) -> None:
        w = nn.Parameter(torch.ones(LARGE, dtype=torch.float64))
        optimizer = polyak.optim.get(name)([w], execution="compiled")
        for _ in range(3):
            w.grad = torch.ones_like(w)
            optimizer.step()
        results[name] = w.detach().clone(), optimizer.explain()

    names = ("adamw", "cadamw")  # kernels that other tests need too
    threads = [threading.Thread(target=train, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert CompiledFxGraph.__call__ is before
    for name in names:
        w = nn.Parameter(torch.ones(LARGE, dtype=torch.float64))
        optimizer = polyak.optim.get(name)([w], execution="eager")
        for _ in range(3):
            w.grad = torch.ones_like(w)
            optimizer.step()
        torch.testing.assert_close(results[name][0], w.detach(), rtol=1e-12, atol=0)
        assert ": compiled (" in results[name][1]


def test_one_optimizer_stepped_by_threads_in_turn() -> None:
    params = weights()
    optimizer = AdamW(params, lr=0.1, execution="compiled")
    for t in range(4):
        give(params, t)
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()
    twins = weights()
    plain = AdamW(twins, lr=0.1, execution="eager")
    for t in range(4):
        give(twins, t)
        plain.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


STEP_IN_COMPILE = """
import torch
import polyak.optim
from torch._dynamo.utils import counters

for method in ("adamw", "lion", "ademamix", "adan", "cadan", "muon", "sgd"):
    results = []
    for compiled in (True, False):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 600, dtype=torch.float64).view(20, 30))
        optimizer = polyak.optim.get(method)([w])
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for t in range(3):
            w.grad = w.detach().cos() * (t + 1)
            step()
        results.append(w.detach())
    assert torch.equal(*results), method
graphs = counters["stats"].get("unique_graphs", 0)
assert graphs == 0, f"{graphs} graphs of the engine"
"""


def test_a_step_inside_torch_compile() -> None:
    """It is not traced: nothing would be gained."""
    python("-c", STEP_IN_COMPILE)


def test_a_training_step_inside_torch_compile() -> None:
    """Forward and backward are compiled around it, by a backend that runs them as they are."""
    model = nn.Linear(5, 3).double()
    optimizer = AdamW(model.parameters(), lr=0.1)
    x = torch.randn(4, 5, dtype=torch.float64)

    @torch.compile(backend="eager")
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    losses = [float(step().detach()) for _ in range(4)]
    assert losses == sorted(losses, reverse=True) and float(optimizer.state[model.weight]["step"]) == 4


def arrays() -> Iterator[Tensor]:
    return (o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and o.shape == LARGE)


@pytest.mark.parametrize("ending", ["plain", "exception"])
@pytest.mark.parametrize("method", [AdamW, CAdamW])
def test_compiled_steps_keep_nothing_alive(method: type[Optimizer], ending: str) -> None:
    gc.collect()
    before = {id(t) for t in arrays()}
    params = weights()
    optimizer = method(params, lr=0.1, execution="compiled")
    for t in range(3):
        give(params, t)
        optimizer.step()
    if ending == "exception":
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises(TypeError):
            optimizer.step()
    gradients = [weakref.ref(p.grad) for p in params if p.grad is not None]
    for p in params:
        p.grad = None
    gc.collect()
    assert all(g() is None for g in gradients), "a gradient outlives the step"
    things = [weakref.ref(t) for p in params for t in (p, *optimizer.state[p].values())]
    del p, params, optimizer
    gc.collect()
    assert all(t() is None for t in things)
    assert not [t.shape for t in arrays() if id(t) not in before]
