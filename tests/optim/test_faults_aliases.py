"""The same address is not the same tensor, and memory that two weights share: as torch.optim, in every mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

import polyak.optim
from polyak.optim import AdamW, Optimizer
from polyak.optim.engine import units
from tests.optim.scenario import KINDS

MODES = ("eager", "batched", "compiled")
BOTH = (torch.optim.AdamW, AdamW)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(mode: str, run: Callable[[Callable[[Any], Any]], list[Tensor]], rtol: float = 1e-11) -> None:
    """``run`` gets a way to make an optimizer, and gives tensors that are to be those of torch.optim.AdamW."""
    wanted = run(lambda params: torch.optim.AdamW(params, lr=0.1, foreach=False))
    got = run(lambda params: AdamW(params, lr=0.1, execution=mode))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol / 100)


def steps(optimizer: Any, params: list[nn.Parameter], first: int, count: int = 3) -> None:
    for t in range(first, first + count):
        for i, p in enumerate(params):
            p.grad = drawn(*p.shape, seed=10 * t + i)
        optimizer.step(**({"loss": 1.0} if isinstance(optimizer, Optimizer) else {}))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "fewer rows": lambda t: t[:3],
    "transposed": lambda t: t.t(),
    "one row less, transposed": lambda t: t[:5].t(),
    "every other row": lambda t: t[::2],
    "flat": lambda t: t.view(-1),
    "other shape": lambda t: t.view(9, 4),
    "a third dimension": lambda t: t.view(6, 2, 3),
    "overlapping rows": lambda t: t.view(-1)[:30].view(5, 6),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_weight_replaced_by_another_view_of_its_memory(view: str, mode: str) -> None:
    """The memories go along, as whoever cuts rows out of a weight must see to."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        w, other = nn.Parameter(drawn(6, 6, seed=1)), nn.Parameter(drawn(6, 6, seed=2))
        base = w.data
        optimizer = make([w, other])
        steps(optimizer, [w, other], 0)
        w.grad = None
        w.data = VIEWS[view](w.data)
        state = optimizer.state[w]
        state |= {k: VIEWS[view](v).clone() for k, v in state.items() if k != "step"}
        steps(optimizer, [w, other], 3)
        return [base, w.data, other.data, state["exp_avg"]]

    compare(mode, run)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("view", ["transposed", "fewer rows", "every other row"])
def test_a_memory_replaced_by_another_view_of_its_memory(view: str, mode: str) -> None:
    """A square weight stays as it is where the view is as large; otherwise it is cut with the memory."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        w = nn.Parameter(drawn(6, 6, seed=1))
        optimizer = make([w])
        steps(optimizer, [w], 0)
        w.grad = None
        state = optimizer.state[w]
        bases = [state["exp_avg"], state["exp_avg_sq"]]
        state |= {k: VIEWS[view](v) for k, v in state.items() if k != "step"}
        if view != "transposed":
            w.data = VIEWS[view](w.data)
        steps(optimizer, [w], 3)
        kept = optimizer.state[w]
        # what is laid out otherwise than the weight is copied once, as the weight lies
        return [w.data, kept["exp_avg"], kept["exp_avg_sq"], *(bases if view != "transposed" else [])]

    compare(mode, run)


@pytest.mark.parametrize("mode", ["eager", "batched"])
def test_a_weight_replaced_by_its_bits_in_another_dtype(mode: str) -> None:
    """Same address, shape and strides, other numbers."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        w = nn.Parameter(drawn(4, 4).to(torch.bfloat16))
        optimizer = make([w])
        w.grad = torch.ones_like(w)
        optimizer.step()
        w.grad = None
        w.data = w.data.view(torch.float16)
        w.data.copy_(drawn(4, 4, seed=3))
        w.grad = torch.ones_like(w)
        optimizer.step()
        return [w.detach().clone()]

    got = run(lambda params: AdamW(params, lr=0.1, execution=mode))[0]
    wanted = drawn(4, 4, seed=3).to(torch.float16)
    assert got.dtype == torch.float16 and bool(got.isfinite().all())
    torch.testing.assert_close(got.double(), wanted.double() * (1 - 0.1 * 0.01) - 0.1, rtol=2e-3, atol=2e-3)


def _same_line(base: Tensor) -> list[Tensor]:
    return [base[:20], base[10:30], base[25:45], base[60:80]]


OVERLAPS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "neighbours": _same_line,
    "twice the same": lambda b: [b[:20], b[:20], b[40:60]],
    "nested": lambda b: [b[:100], b[30:35], b[10:20]],
    "a matrix and its transpose": lambda b: [b[:36].view(6, 6).t(), b[:36].view(6, 6)],
    "interleaved columns": lambda b: [b[:40].view(10, 4)[:, ::2], b[:40].view(10, 4)[:, 1::2]],
    "one element": lambda b: [b[3:4], b[:20], b[3]],
    "row and matrix": lambda b: [b[:6].view(1, 6), b[:36].view(6, 6), b[6:12]],
    "large and small": lambda b: [b[100:], b[:200], b[20100:], b[:5]],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", ["one group", "a group each", "a group each, backwards"])
@pytest.mark.parametrize("kind", OVERLAPS)
def test_weights_that_share_memory(kind: str, groups: str, mode: str) -> None:
    """One after the other, in the order of the parameters, each with its own gradient and memories."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        base = drawn(20200, seed=5)
        params = [nn.Parameter(v) for v in OVERLAPS[kind](base)]
        ordered = params[::-1] if "backwards" in groups else params
        optimizer = make(ordered if groups == "one group" else [{"params": [p]} for p in ordered])
        steps(optimizer, params, 0, 4)
        return [base]

    compare(mode, run)


def when(name: str, mode: str) -> list[pytest.MarkDecorator]:
    """Each kernel takes seconds to compile: one of each kind with the slow tests."""
    return [pytest.mark.slow if name in KINDS else pytest.mark.exhaustive] * (mode == "compiled")


NAMES_AND_MODES = [
    pytest.param(name, mode, marks=when(name, mode))
    for name in polyak.optim.names()
    for mode in ("batched", "compiled")
]


@pytest.mark.parametrize(("name", "mode"), NAMES_AND_MODES)
def test_modes_agree_on_weights_that_share_memory(name: str, mode: Any) -> None:
    results = []
    for execution in ("eager", mode):
        base = drawn(400, seed=5)
        parts = [base[:60].view(6, 10), base[30:90].view(10, 6), base[:100].view(10, 10), base[300:360].view(6, 10)]
        params = [nn.Parameter(v) for v in parts]
        options: dict[str, Any] = {"ns_dtype": torch.float64} if name == "muon" else {}
        optimizer = polyak.optim.get(name)(params, execution=execution, **options)
        steps(optimizer, params, 0, 4)
        results.append(base)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "negative bit": lambda g: torch.view_as_complex(torch.stack([g, -g], -1)).conj().imag,
    "transposed": lambda g: g.t().contiguous().t(),
    "expanded": lambda g: g[:1].expand_as(g),
    "strided": lambda g: torch.stack([g, g], -1)[..., 0],
    "part of a buffer": lambda g: torch.cat([g.new_zeros(1), g.reshape(-1)])[1:].view(g.shape),
    "float32": lambda g: g.float(),
    "requires grad": lambda g: g.clone().requires_grad_(),
    "not a leaf": lambda g: g.clone().requires_grad_() * 1,
    "subclass": lambda g: g.as_subclass(nn.Buffer),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_any_make(kind: str, late: bool, mode: str) -> None:
    """In the first step, or when plain ones were prepared for."""
    if kind == "float32" and mode == "compiled":
        pytest.skip("a kernel of its own: see the slow runs")

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        params = [nn.Parameter(drawn(6, 4, seed=1)), nn.Parameter(drawn(6, 4, seed=2))]
        if kind == "float32":
            params = [nn.Parameter(p.detach().float()) for p in params]
        optimizer = make(params)
        for t in range(5):
            for i, p in enumerate(params):
                g = drawn(6, 4, seed=10 * t + i).to(p.dtype)
                p.grad = GRADIENTS[kind](g) if (t > 2) or not late else g
            optimizer.step()
        return [p.detach() for p in params]

    compare(mode, run, rtol=1e-5 if kind == "float32" else 1e-11)


@pytest.mark.parametrize("mode", ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pair", [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)])
def test_gradients_of_another_dtype(pair: tuple[torch.dtype, torch.dtype], mode: str) -> None:
    """What torch.optim refuses: the gradient is taken in the dtype of the weight."""
    results = []
    for cast in (True, False):
        w = nn.Parameter(drawn(6, 4).to(pair[0]))
        w.grad_dtype = None if hasattr(w, "grad_dtype") else w.dtype
        optimizer = AdamW([w], lr=0.1, execution=mode)
        for t in range(4):
            g = drawn(6, 4, seed=t).to(pair[1])
            w.grad = g if cast and hasattr(w, "grad_dtype") else g.to(pair[0])
            optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_weights_at_odd_addresses(mode: str) -> None:
    """Views into one flat buffer, as some libraries make of all weights."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        base = drawn(20300, seed=7)
        params = [nn.Parameter(base[1:25].view(6, 4)), nn.Parameter(base[25:34]), nn.Parameter(base[35:20035])]
        gradients = torch.zeros_like(base)
        optimizer = make(params)
        for t in range(4):
            gradients.copy_(drawn(20300, seed=t))
            for p, g in zip(params, (gradients[1:25].view(6, 4), gradients[25:34], gradients[35:20035]), strict=True):
                p.grad = g
            optimizer.step()
        return [base]

    compare(mode, run)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lr_as_a_tensor(dtype: torch.dtype, mode: str) -> None:
    """Changed in place between steps, it compiles nothing and is read each time."""

    def run(make: Callable[[Any], Any]) -> list[Tensor]:
        params = [nn.Parameter(drawn(6, 4, seed=1)), nn.Parameter(drawn(9, seed=2))]
        optimizer = make(params)
        is_ours = isinstance(optimizer, Optimizer)
        lr = torch.tensor(0.125, dtype=dtype) if is_ours else 0.125
        optimizer.param_groups[0]["lr"] = lr
        for t in range(4):
            steps(optimizer, params, t, 1)
            if is_ours:
                lr.mul_(0.5)
            else:
                optimizer.param_groups[0]["lr"] *= 0.5
        return [p.detach() for p in params]

    before = sum(map(len, units._compiled.values()))
    compare(mode, run)
    if mode == "compiled":
        assert sum(map(len, units._compiled.values())) - before <= 1


def work(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("mode", ["eager", "batched"])
def test_an_optimizer_goes_to_a_spawned_process(mode: str) -> None:
    """It shares weights and memories with the child, whose step is seen here, as with torch.optim."""
    results = []
    for cls in BOTH:
        torch.manual_seed(0)
        model = nn.Linear(20, 10).double()
        optimizer: Any = cls(model.parameters(), lr=0.1, **({"execution": mode} if cls is AdamW else {}))
        work(model, optimizer)
        optimizer.zero_grad()
        process = mp.get_context("spawn").Process(target=work, args=(model, optimizer))
        process.start()
        process.join()
        assert process.exitcode == 0
        work(model, optimizer)
        memories = [v for _, v in sorted(optimizer.state[model.weight].items())]
        results.append([*(p.detach() for p in model.parameters()), *memories])
        assert float(optimizer.state[model.weight]["step"]) == 3
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_forked_processes_share_what_is_shared() -> None:
    model = nn.Linear(20, 10).double()
    optimizer = AdamW(model.parameters(), lr=0.1)
    work(model, optimizer)
    model.share_memory()
    for state in optimizer.state.values():
        for value in state.values():
            value.share_memory_()
    process = mp.get_context("fork").Process(target=work, args=(model, optimizer))
    process.start()
    process.join()
    assert process.exitcode == 0
    work(model, optimizer)
    assert float(optimizer.state[model.weight]["step"]) == 3
