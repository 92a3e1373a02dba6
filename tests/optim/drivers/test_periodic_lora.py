"""PeriodicLoRA: what an unload keeps, forgets and restarts; layers of peft; what is refused."""

import copy
import io
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim.drivers import LowRank, PeriodicLoRA, lora_layers, unload
from tests.optim.moves import random
from tests.reproduce.run import check
from tests.reproduce.vector import RECORDED, Vector


class Adapted(nn.Module):
    """A frozen linear layer and its low-rank update."""

    def __init__(self, size: int = 6, rank: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        w, a, b = random(0, (size, size), (rank, size), (size, rank))
        self.weight = nn.Parameter(w.to(dtype), requires_grad=False)
        self.a, self.b, self.scale = nn.Parameter(a.to(dtype)), nn.Parameter(b.to(dtype)), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self.scale * self.b @ self.a).T

    def layer(self) -> LowRank:
        return LowRank("layer", self.weight, self.a, self.b, self.scale)


def train(
    model: Adapted,
    optimizer: torch.optim.Optimizer,
    periodic: PeriodicLoRA | None,
    first: int,
    last: int,
    scheduler: Any = None,
) -> None:
    for t in range(first, last):
        x, y = random(t, (8, 6), (8, 6))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if periodic is not None:
            periodic.step()


def test_the_recorded_unload() -> None:
    assert check(Vector(RECORDED, "plora-unload"), ["eager"])[0] == "reproduced"


@pytest.mark.parametrize(("momentum", "keep"), [(0.0, "B"), (0.1, "B"), (0.7, "B"), (0.3, "sqrt"), (0.3, "both")])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 2)])
def test_the_function_stays_what_it_was(momentum: float, keep: Any, shape: tuple[int, ...]) -> None:
    ones = (1,) * (len(shape) - 2)
    w, a, b, fresh = random(1, shape, (2, *shape[1:]), (6, 2, *ones), (2, *shape[1:]))

    def whole(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return w + 2.0 * (b.flatten(1) @ a.flatten(1)).view(shape)

    new = unload(w, a, b, 2.0, momentum, keep, fresh)
    far = (whole(*new) - whole(w, a, b)).abs().amax()
    if keep == "both":  # by s B A (m^2 - m)
        torch.testing.assert_close(whole(*new) - whole(w, a, b), (momentum**2 - momentum) * (whole(w, a, b) - w))
    else:
        assert far < 1e-12
    assert torch.equal(new[1], fresh) == (momentum == 0) and bool(new[2].any()) == (momentum > 0)


@pytest.mark.parametrize("name", ["adamw", "torch"])
def test_an_unload_forgets_the_state_of_the_factors_alone(name: str) -> None:
    model, other = Adapted(), nn.Parameter(torch.ones(3).double())
    params = [model.a, model.b, other]
    optimizer = torch.optim.AdamW(params) if name == "torch" else polyak.optim.create(name, params, execution="batched")
    periodic = PeriodicLoRA([model.layer()], optimizer, unload_every=3)
    for t in range(3):
        for p in params:
            p.grad = random(t, p.shape)[0]
        optimizer.step()
        before = model(torch.eye(6).double())
        assert periodic.step() == (t == 2)
        torch.testing.assert_close(model(torch.eye(6).double()), before)
    assert set(optimizer.state) == {other} and model.a.grad is None and other.grad is not None
    assert not model.b.any() and float(model.a.detach().abs().amax()) <= 1 / math.sqrt(6)
    train(model, optimizer, None, 3, 4)
    assert float(optimizer.state[model.a]["step"]) == 1 and float(optimizer.state[other]["step"]) == 3


def test_the_optimizer_may_keep_its_state() -> None:
    model = Adapted()
    optimizer = torch.optim.Adam([model.a, model.b])
    train(model, optimizer, PeriodicLoRA([model.layer()], optimizer, unload_every=2, reset_optimizer=False), 0, 3)
    assert float(optimizer.state[model.b]["step"]) == 3


@pytest.mark.parametrize("tensor", [False, True])
def test_the_schedule_begins_anew(tensor: bool) -> None:
    """Every stage has the rates of the first."""
    model = Adapted()
    lr: Any = torch.tensor(0.1) if tensor else 0.1
    optimizer = torch.optim.SGD([model.a, model.b], lr=lr)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 3),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
        ],
        [3],
    )
    periodic = PeriodicLoRA([model.layer()], optimizer, unload_every=7, scheduler=scheduler)
    rates = []
    for t in range(21):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        train(model, optimizer, periodic, t, t + 1, scheduler)
    assert rates[7:14] == pytest.approx(rates[:7]) and rates[14:] == pytest.approx(rates[:7])
    assert len(set(rates[:7])) > 5


def test_the_rank_of_the_sum_grows_with_the_stages() -> None:
    model = Adapted(rank=1)
    start = model.weight.detach().clone()
    optimizer = torch.optim.Adam([model.a, model.b], lr=0.05)
    periodic = PeriodicLoRA([model.layer()], optimizer, unload_every=5)
    ranks = []
    for stage in range(4):
        train(model, optimizer, periodic, 5 * stage, 5 * stage + 5)
        ranks.append(int(torch.linalg.matrix_rank(model.weight - start)))
    assert ranks == [1, 2, 3, 4] and periodic.stage == 4


def test_a_resumed_run_is_the_same_run() -> None:
    def new() -> tuple[Adapted, torch.optim.Optimizer, Any, PeriodicLoRA]:
        model = Adapted()
        optimizer = torch.optim.AdamW([model.a, model.b], lr=0.05)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return (
            model,
            optimizer,
            scheduler,
            PeriodicLoRA([model.layer()], optimizer, unload_every=4, scheduler=scheduler, seed=7),
        )

    model, optimizer, scheduler, periodic = new()
    train(model, optimizer, periodic, 0, 6, scheduler)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (model, optimizer, scheduler, periodic)], file)
    file.seek(0)
    rest = new()
    train(rest[0], rest[1], rest[3], 0, 1, rest[2])
    for part, saved in zip(rest, torch.load(file), strict=True):
        part.load_state_dict(saved)
    train(model, optimizer, periodic, 6, 15, scheduler)
    train(rest[0], rest[1], rest[3], 6, 15, rest[2])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), rest[0].parameters(), strict=True))
    with pytest.raises(ValueError, match=r"a state has \['options', .*got \['steps'\]"):
        periodic.load_state_dict({"steps": 1})


def test_ranks_draw_the_same_factors_whatever_else_they_draw() -> None:
    drawn = []
    for rank in range(2):
        torch.manual_seed(rank)
        model = Adapted(dtype=torch.float32 if rank else torch.float64)
        optimizer = torch.optim.SGD([model.a, model.b])
        periodic = PeriodicLoRA([model.layer()], optimizer, unload_every=None, init="gaussian")
        periodic.unload()
        drawn.append(model.a.detach().float().clone())
        periodic.unload()
        assert not torch.equal(model.a.detach().float(), drawn[-1])
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("rounding", "arrives"), [("stochastic", True), ("nearest", False)])
def test_small_updates_arrive_in_half_precision(rounding: Any, arrives: bool) -> None:
    """Of 64 updates, each a fraction of what bfloat16 can add to the weight, the sum is there to 1 %."""
    size = 128
    w, a, b = random(2, (size, size), (4, size), (size, 4))
    weight = nn.Parameter(w.sign().bfloat16(), requires_grad=False)
    a, b = nn.Parameter(a.float()), nn.Parameter(1e-4 * b.float())
    optimizer = torch.optim.SGD([a, b])
    layer = LowRank("layer", weight, a, b, 1.0)
    periodic = PeriodicLoRA([layer], optimizer, unload_every=None, rounding=rounding)
    start, want = weight.float(), torch.zeros(size, size)
    held = a.detach().clone(), b.detach().clone()
    for _ in range(64):
        with torch.no_grad():
            a.copy_(held[0])
            b.copy_(held[1])
        want += held[1] @ held[0]
        periodic.unload()
    along = float(((weight.float() - start) * want).sum() / want.square().sum())
    assert (abs(along - 1) < 0.05) == arrives and (arrives or along == 0.0)


def test_autocast_and_transposed_weights() -> None:
    w, a, b = random(3, (5, 6), (2, 5), (6, 2))
    weight = nn.Parameter(w.float(), requires_grad=False)
    a, b = nn.Parameter(a.float()), nn.Parameter(b.float())
    layer = LowRank("turned", weight, a, b, 0.5, transposed=True)
    want = weight.detach() + 0.5 * (b.detach() @ a.detach()).T
    periodic = PeriodicLoRA([layer, layer], torch.optim.SGD([a, b]), unload_every=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert periodic.step()
    torch.testing.assert_close(weight.detach(), want, rtol=1e-6, atol=1e-6)


def shared(model: Adapted) -> list[LowRank]:
    other = LowRank("other", model.weight, nn.Parameter(model.a.detach()), nn.Parameter(model.b.detach()), 1.0)
    return [model.layer(), other]


def changed(**changes: Any) -> Any:
    def make(model: Adapted) -> list[LowRank]:
        return [LowRank(**{**vars(model.layer()), **changes})]

    return make


@pytest.mark.parametrize(
    ("layers", "options", "error", "match"),
    [
        (None, {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        (None, {"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\), got -0.1"),
        (None, {"momentum": float("nan")}, ValueError, "got nan"),
        (None, {"unload_every": 0}, ValueError, "unload_every must be a positive integer or None, got 0"),
        (None, {"unload_every": 2.5}, ValueError, "unload_every must be .*got 2.5"),
        (None, {"keep": "A"}, ValueError, r"keep must be one of \['B', 'sqrt', 'both'\], got 'A'"),
        (None, {"init": "zeros"}, ValueError, "init must be one of .*got 'zeros'"),
        (None, {"rounding": "up"}, ValueError, "rounding must be one of .*got 'up'"),
        (lambda model: [], {}, ValueError, "there is no LoRA layer"),
        (shared, {}, ValueError, "does not train the factors of other"),
        (changed(weight=nn.Parameter(torch.ones(6, 6))), {}, ValueError, "the weight of layer is trained itself"),
        (changed(weight=torch.ones(6, 6, dtype=torch.int8)), {}, TypeError, r"quantized \(torch.int8\)"),
        (changed(weight=torch.ones(5, 6)), {}, ValueError, r"factors of \(6, 2\) and \(2, 6\) do not make"),
        (changed(weight=torch.ones(6)), {}, ValueError, "fewer than 2 dimensions"),
    ],
)  # fmt: skip
def test_refused(layers: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
    model = Adapted()
    optimizer = torch.optim.SGD([model.a, model.b])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        PeriodicLoRA([model.layer()] if layers is None else layers(model), optimizer, **{"unload_every": 1, **options})
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_weight_with_two_pairs_of_factors_is_refused() -> None:
    layers = shared(Adapted())
    optimizer = torch.optim.SGD([p for layer in layers for p in (layer.a, layer.b)])
    with pytest.raises(ValueError, match="layer and other share a weight"):
        PeriodicLoRA(layers, optimizer, unload_every=1)


def adapted_by_peft(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 3))
    model.insert(1, nn.Unflatten(1, (1, 8)))
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["0", "2", "4"], **options})
    return peft.get_peft_model(model, config)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_peft_layers_unload(momentum: float) -> None:
    model = adapted_by_peft()
    optimizer = torch.optim.AdamW(trainable(model), lr=0.05)
    periodic = PeriodicLoRA(model, optimizer, unload_every=3, momentum=momentum)
    assert len(periodic.layers) == 3
    x = torch.randn(5, 6)
    start = [layer.weight.detach().clone() for layer in periodic.layers]
    for t in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        before = model(x).detach()
        assert periodic.step() == (t == 2)
    torch.testing.assert_close(model(x).detach(), before, rtol=0, atol=1e-6)
    assert all(not torch.equal(layer.weight, w) for layer, w in zip(periodic.layers, start, strict=True))
    assert not optimizer.state
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x).detach(), before, rtol=0, atol=1e-5)


def test_a_merged_adapter_is_refused() -> None:
    model = adapted_by_peft()
    periodic = PeriodicLoRA(model, torch.optim.SGD(trainable(model)), unload_every=1)
    model.merge_adapter()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="is merged; unmerge it before an unload"):
        periodic.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"), [({"use_dora": True}, "a variant of LoRA, as DoRA"), ({"lora_bias": True}, "a LoRA bias")]
)
def test_adapters_that_are_more_than_a_product_are_refused(options: dict[str, Any], match: str) -> None:
    model = adapted_by_peft(target_modules=["0"], **options)
    with pytest.raises(ValueError, match=match):
        list(lora_layers(model))


def test_a_model_needs_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("peft", "peft.tuners"):
        monkeypatch.setitem(sys.modules, name, None)
    model = Adapted()
    with pytest.raises(ModuleNotFoundError, match=r"peft, which is not installed: pip install 'polyak\[lora\]'"):
        PeriodicLoRA(model, torch.optim.SGD([model.a]), unload_every=1)
