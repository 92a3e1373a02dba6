"""``optimizer.state`` and ``param_groups`` belong to the user as much as to the engine: as torch.optim in all that."""

import copy
import gc
import io
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import polyak.optim
from polyak.optim import AdamW, Adan, CAdamW, Optimizer, switch

MODES = ("eager", "batched")
BOTH = (torch.optim.AdamW, AdamW)
DOUBLE = {"rtol": 1e-12, "atol": 1e-14}


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=source, dtype=torch.float64)) for s in shapes or ((4, 3), (5,), (2,))]


def give(params: list[nn.Parameter], t: int) -> None:
    source = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source, dtype=torch.float64).to(p.dtype)


def check_as_torch(run: Callable[[type, list[nn.Parameter]], Any]) -> None:
    """The same treatment of torch's AdamW and of this one gives the same weights, memories and steps."""
    results = []
    for cls in BOTH:
        params = weights()
        optimizer = run(cls, params)
        results.append([*params, *(v for p in params for _, v in sorted(optimizer.state.get(p, {}).items()))])
    assert len(results[0]) == len(results[1])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, check_dtype=False, **DOUBLE)


@pytest.mark.parametrize("mode", MODES)
def test_a_group_taken_out_and_put_back_goes_on(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("POLYAK_EXECUTION", mode)

    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls([{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(params)], weight_decay=0.1)
        for t in range(9):
            if t == 3:
                away = optimizer.param_groups.pop(1)
            if t == 6:
                optimizer.param_groups.append(away)  # at another place than before
            give(params, t)
            optimizer.step()
        return optimizer

    check_as_torch(run)


@pytest.mark.parametrize("mode", MODES)
def test_groups_stepped_in_turn(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """One partition at a time, as engines with sharded states do, and then a parameter at a time."""
    monkeypatch.setenv("POLYAK_EXECUTION", mode)

    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], lr=0.1)
        groups = optimizer.param_groups
        for t in range(6):
            give(params, t)
            for group in groups:
                optimizer.param_groups = [group]
                optimizer.step()
        optimizer.param_groups = groups
        listed = groups[1]["params"]
        for t in range(6, 9):
            give(params, t)
            for p in listed:
                groups[1]["params"] = [p]
                optimizer.step()
        groups[1]["params"] = listed
        optimizer.step()
        return optimizer

    check_as_torch(run)


def test_a_frozen_parameter_that_is_moved_to_another_group_keeps_its_memories() -> None:
    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], lr=0.1)
        for t in range(6):
            if t == 3:
                optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())
            give(params, t)
            if t in (2, 3):
                params[1].grad = None
            optimizer.step()
        return optimizer

    check_as_torch(run)


def test_only_the_state_dict_leaves_strangers_out() -> None:
    params = weights()
    optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}])
    give(params, 0)
    optimizer.step()
    away = optimizer.param_groups.pop()
    assert sorted(optimizer.state_dict()["state"]) == [0] and len(optimizer.state) == 3
    optimizer.param_groups.append(away)
    assert sorted(optimizer.state_dict()["state"]) == [0, 1, 2]


def test_a_method_that_is_switched_away_and_back_keeps_other_groups() -> None:
    params = weights()
    optimizer: Optimizer = AdamW([{"params": params[:1]}, {"params": params[1:]}])
    give(params, 0)
    optimizer.step()
    kept = optimizer.state[params[2]]["exp_avg"].clone()
    optimizer = switch(switch(optimizer, "adan"), "adamw")
    assert torch.equal(optimizer.state[params[2]]["exp_avg"], kept)


def test_no_state_before_the_first_step() -> None:
    for name in polyak.optim.names():
        a, b = weights((4, 3), (4, 3))
        optimizer = polyak.optim.get(name)([{"params": [a]}, {"params": [b]}])
        assert len(optimizer.state) == 0 and optimizer.state_bytes() == 0
        optimizer.explain()
        assert len(optimizer.state) == 0
        a.grad = torch.ones_like(a)
        optimizer.step(loss=1.0)
        assert b not in optimizer.state, name
        del optimizer.param_groups[1]  # a group that never had a gradient
        assert sorted(optimizer.state_dict()["state"]) in ([0], [])


def test_loading_shares_what_fits_and_needs_no_second_state() -> None:
    (w,) = weights((50,))
    give([w], 0)
    first = AdamW([w])
    first.step()
    saved = first.state_dict()
    for cls in BOTH:
        loaded = cls([w])
        loaded.load_state_dict(saved)
        assert loaded.state[w]["exp_avg"].data_ptr() == saved["state"][0]["exp_avg"].data_ptr()


def test_a_model_that_is_replaced_before_the_first_step_is_let_go() -> None:
    """Accelerate does so before it shards a model."""
    model = nn.Linear(10, 10)
    optimizer = AdamW(model.parameters())
    optimizer.explain()
    weight = weakref.ref(model.weight)
    for group in optimizer.param_groups:
        group["params"] = [torch.empty(1) for _ in group["params"]]
    del model
    gc.collect()
    assert weight() is None and len(optimizer.state) == 0


@pytest.mark.parametrize("ending", ["plain", "exception", "fake step"])
@pytest.mark.parametrize("name", ["adamw", "cadan", "muon"])
def test_nothing_is_kept_alive(name: str, ending: str) -> None:
    params = weights((4, 3), (300, 200))
    optimizer = polyak.optim.get(name)(params, lr=0.0 if ending == "fake step" else 0.1)
    give(params, 0)
    if ending == "fake step":
        for p in params:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    if ending == "exception":
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises(TypeError):
            optimizer.step()
    gradients = [weakref.ref(p.grad) for p in params]
    for p in params:
        p.grad = None
    gc.collect()
    assert all(g() is None for g in gradients), "a gradient outlives the step"
    things = [weakref.ref(t) for p in params for t in (p, *optimizer.state[p].values())]
    del p, params, optimizer
    gc.collect()
    assert not [t for t in things if t() is not None]


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_entries_of_others_stay_and_are_saved(name: str) -> None:
    (w,) = weights((4, 4))
    kind = polyak.optim.get(name)
    optimizer = kind([w])
    give([w], 0)
    optimizer.step()
    optimizer.state["epochs"] = 3  # torch keeps keys that are no tensors
    optimizer.state[w]["slow_weights"] = w.detach().clone()
    optimizer.state[w]["history"] = [1, 2]
    optimizer.step()
    assert optimizer.state["epochs"] == 3 and optimizer.state_bytes() > w.nbytes
    optimizer.diagnostics()
    again = kind([w])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.state["epochs"] == 3 and again.state[w]["history"] == [1, 2]
    assert torch.equal(again.state[w]["slow_weights"], optimizer.state[w]["slow_weights"])
    again.step()
    again._forget()
    assert again.state["epochs"] == 3 and not again.state[w]["slow_weights"].any()


def test_a_wrapper_may_write_before_the_first_step() -> None:
    params = weights()
    optimizer = AdamW(params)
    optimizer.state[params[0]]["anchor"] = torch.ones(2)
    give(params, 0)
    optimizer.step()
    assert set(optimizer.state[params[0]]) == {"anchor", "step", "exp_avg", "exp_avg_sq"}


INFERENCE: dict[str, Callable[[Optimizer, list[nn.Parameter], Any], Any]] = {
    "load": lambda o, ps, saved: o.load_state_dict(saved),
    "group": lambda o, ps, saved: o.add_param_group({"params": ps[2:]}),
    "diagnostics": lambda o, ps, saved: (o.state.clear(), o.diagnostics()),
    "explain": lambda o, ps, saved: o.explain(),
    "step": lambda o, ps, saved: o.step(),
    "forget": lambda o, ps, saved: o._forget(),
    "storage": lambda o, ps, saved: (o.param_groups[0].update(state_storage="bfloat16"), o.diagnostics()),
    "deepcopy": lambda o, ps, saved: copy.deepcopy(o),
}


@pytest.mark.parametrize("what", INFERENCE)
def test_inference_mode_leaves_nothing_behind(what: str) -> None:
    params = weights()
    optimizer = Adan(params[:2])
    give(params, 0)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.inference_mode():
        INFERENCE[what](optimizer, params, saved)
    give(params, 1)
    optimizer.step()
    assert not any(v.is_inference() for p in params for v in optimizer.state[p].values() if isinstance(v, Tensor))


@pytest.mark.parametrize("what", ["made", "switched"])
def test_optimizers_made_in_inference_mode_train(what: str) -> None:
    params = weights()
    give(params, 0)
    with torch.inference_mode():
        optimizer: Optimizer = CAdamW(params)
        if what == "switched":
            optimizer.step()
            optimizer = switch(optimizer, "adan")
    give(params, 1)
    optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("where", ["fake", "meta"])
@pytest.mark.parametrize("name", polyak.optim.names())
def test_fake_and_meta_tensors(name: str, where: str) -> None:
    context: AbstractContextManager[Any] = FakeTensorMode() if where == "fake" else torch.device("meta")
    with context:
        params = [nn.Parameter(torch.ones(8, 4)), nn.Parameter(torch.ones(6, 6))]
        optimizer = polyak.optim.get(name)(params[:1], **({"lr": 0.0} if name == "adamw" else {}))
        for t in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step(loss=1.0)
            if t == 0:
                optimizer.add_param_group({"params": params[1:]})
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step(loss=1.0)
        optimizer.explain()


def test_a_default_device_is_not_that_of_the_weights() -> None:
    for name in polyak.optim.names():
        params = weights((8, 4), (3, 3))
        with torch.device("meta"):
            optimizer = polyak.optim.get(name)(params)
            optimizer.explain()
        for t in range(2):
            give(params, t)
            with torch.device("meta"):
                optimizer.step(loss=1.0)
        assert {v.device.type for p in params for v in optimizer.state[p].values()} <= {"cpu"}, name


@pytest.mark.parametrize("build", ["before", "loaded"])
def test_lazy_modules(build: str) -> None:
    model = nn.LazyLinear(3)
    optimizer = AdamW(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    if build == "loaded":
        optimizer.load_state_dict(AdamW(nn.LazyLinear(3).parameters(), lr=0.1).state_dict())
    model(torch.ones(2, 5)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert bool((model.weight < before).all())


class Marked(Tensor):
    """A tensor that only has another type."""


def test_weights_of_a_tensor_subclass_count_their_steps() -> None:
    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        params[0] = nn.Parameter(params[0].detach().as_subclass(Marked))
        optimizer = cls(params[:2], lr=0.1)
        for t in range(6):
            if t == 3:
                optimizer.add_param_group({"params": params[2:]})
            give(params, t)
            optimizer.step()
        return optimizer

    check_as_torch(run)


@pytest.mark.parametrize(("lr", "gradient", "counted"), [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.1, 0.0, 1.0)])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_request_for_state_counts_nothing(lr: float, gradient: float, counted: float, tensor_lr: bool) -> None:
    """Only a first step with lr 0 and gradients of zeros is one: torch.distributed.checkpoint makes it."""
    (w,) = weights((3,))
    optimizer = AdamW([w], lr=torch.tensor(lr) if tensor_lr else lr, weight_decay=0.0)
    w.grad = torch.full_like(w, gradient)
    optimizer.step()
    assert float(optimizer.state[w]["step"]) == counted
    assert bool(optimizer.state[w]["exp_avg"].any()) == bool(gradient)
    w.grad = torch.zeros_like(w)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()  # a real one
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # and after a real one all are
    assert float(optimizer.state[w]["step"]) == counted + 2


def test_a_warm_up_from_zero_is_as_with_torch() -> None:
    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls(params, lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 3))
        for t in range(6):
            give(params, t)
            optimizer.step()
            scheduler.step()
        return optimizer

    check_as_torch(run)


def test_memories_exchanged_for_half_a_phase() -> None:
    """Offloading: every memory is replaced by a copy of it, and later by another."""

    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls(params, lr=0.1)
        for t in range(6):
            give(params, t)
            optimizer.step()
            for state in optimizer.state.values():
                for key, value in state.items():
                    if t == 3:
                        value.data = value.data.clone()
                    elif t % 2:
                        state[key] = value.clone()
            if t == 4:
                optimizer.state = defaultdict(dict, {k: dict(v) for k, v in optimizer.state.items()})
        return optimizer

    check_as_torch(run)


def test_a_file_of_a_state_goes_on() -> None:
    def run(cls: Any, params: list[nn.Parameter]) -> Any:
        optimizer = cls(params, lr=0.1)
        for t in range(6):
            give(params, t)
            optimizer.step()
            if t == 3:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                optimizer = cls(params, lr=0.3)
                optimizer.load_state_dict(torch.load(buffer))
        return optimizer

    check_as_torch(run)
