"""STEP: Adam, then masks over a frozen second moment; when the phase changes, and what is refused."""

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.memory import n_of_m
from polyak.optim import STEP, AdamW, Optimizer, SparseLayers, chain, rules, sparsify
from polyak.optim.methods.step import RELATIVE, TINY
from tests.optim.moves import moves, random

SHAPES = ((6, 8), (4, 8, 3, 3), (200, 104), (5,))
MODES = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]


def two(options: dict[str, Any], execution: str = "eager") -> tuple[STEP, list[nn.Parameter]]:
    """An optimizer of masked weights, and of a vector."""
    params = [nn.Parameter(w) for w in random(0, *SHAPES)]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    groups = [{"params": params[:-1], "sparse": True}, {"params": params[-1:]}]
    return STEP(groups, execution=execution, **options), params


def step(optimizer: Optimizer, params: list[nn.Parameter], t: int) -> list[Tensor]:
    gradients = random(100 + t, *(p.shape for p in params))
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()
    return gradients


@pytest.mark.parametrize("execution", MODES)
def test_the_equations_of_both_phases(execution: str) -> None:
    """Against the card, entry by entry, with a switch after the third step."""
    b1, b2, eps, lr, wd, lam = 0.8, 0.9, 1e-3, 0.05, 0.1, 0.3
    optimizer, params = two(
        {"lr": lr, "betas": (b1, b2), "eps": eps, "weight_decay": wd, "sr_lambda": lam, "t_max": 3, "n": 1}, execution
    )
    w = [p.detach().clone() for p in params]
    m, v = [torch.zeros_like(x) for x in w], [torch.zeros_like(x) for x in w]
    frozen: list[Tensor] = []
    for t in range(1, 8):
        gradients = step(optimizer, params, t)
        for i, g in enumerate(gradients):
            if frozen and w[i].ndim > 1:
                g = g + lam * (1 - n_of_m(w[i], 1, 4)) * w[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            w[i] = w[i] * (1 - lr * wd)
            mhat = m[i] / (1 - b1**t)
            if frozen:
                w[i] = w[i] - lr * mhat / (frozen[i] + eps).sqrt()
            else:
                v[i] = b2 * v[i] + (1 - b2) * g * g
                w[i] = w[i] - lr * mhat / ((v[i] / (1 - b2**t)).sqrt() + eps)
        if t == 3:
            frozen = [x / (1 - b2**3) for x in v]
        for p, x, second in zip(params, w, v, strict=True):
            torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], second, rtol=1e-10, atol=1e-13)
    assert optimizer.phase == "masks" and optimizer.param_groups[0]["switched_at"] == 3


def test_the_first_phase_is_adamw_bit_for_bit() -> None:
    options = {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1}
    for execution in ("eager", "batched"):
        optimizer, params = two(options, execution)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        plain = AdamW(twins, execution="eager", **options)
        torchs = [nn.Parameter(p.detach().clone()) for p in params]
        reference = torch.optim.AdamW(torchs, **options)
        for t in range(6):
            for other, listed in ((optimizer, params), (plain, twins), (reference, torchs)):
                step(other, listed, t)
        for p, q, r in zip(params, twins, torchs, strict=True):
            assert torch.equal(p, q)
            torch.testing.assert_close(p.detach(), r.detach(), rtol=1e-12, atol=1e-14)


def test_the_second_phase_is_momentum_with_a_rate_for_each_weight() -> None:
    optimizer, params = two({"lr": 0.05, "betas": (0.8, 0.9), "sr_lambda": 0.0, "t_max": 2})
    for t in range(2):
        step(optimizer, params, t)
    second = [(s["exp_avg_sq"] / (1 - 0.9**2)).clone() for s in map(optimizer.state.get, params)]
    average = [optimizer.state[p]["exp_avg"].clone() for p in params]
    for t in range(2, 6):
        before = [p.detach().clone() for p in params]
        for i, g in enumerate(step(optimizer, params, t)):
            average[i] = 0.8 * average[i] + 0.2 * g
            move = 0.05 * average[i] / (1 - 0.8 ** (t + 1)) / (second[i] + 1e-8).sqrt()
            torch.testing.assert_close(before[i] - params[i].detach(), move)


def test_dead_units_do_not_blow_up_unless_eps_is_outside() -> None:
    """Their second moment is 0, and what they get is the decay of what is masked."""
    moved = {}
    for mode in ("by_phase", "outside"):
        (start,) = random(3, (2, 4))
        p = nn.Parameter(start)
        optimizer = STEP([{"params": [p], "sparse": True}], lr=1e-2, t_max=1, eps_mode=mode, betas=(0.9, 0.9))
        moves(optimizer, p, [torch.zeros_like(start)] * 6)
        moved[mode] = float(p.detach().abs().amax())
    assert moved["by_phase"] < 10 < 1e2 < moved["outside"]


def spread(changes: Tensor, criterion: str) -> float:
    return float(changes.mean() if criterion == "arithmetic" else (changes + TINY).log().mean().exp())


@pytest.mark.parametrize("criterion", ["arithmetic", "geometric"])
@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_the_switch_comes_where_the_windowed_mean_crosses_eps(criterion: str, execution: str) -> None:
    """Of all elements together; a tensor without a gradient has not changed."""
    b2, eps = 0.75, 1e-2
    params = [nn.Parameter(w) for w in random(1, (3, 4), (5,), (7,))]
    optimizer = STEP(params, betas=(0.9, b2), eps=eps, criterion=criterion, execution=execution)
    v, z, due = torch.zeros(24).double(), [], None
    for t in range(60):
        gradients = [g * 2.0 ** (-t / 6) for g in random(t, (3, 4), (5,), (7,))]
        if t == 3:
            gradients[1] = None
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
        flat = torch.cat([torch.zeros(0).double() if g is None else g.flatten() for g in gradients])
        there = torch.ones(24, dtype=bool)
        if t == 3:
            there[12:17] = False
        changes = torch.zeros(24).double()
        changes[there] = (1 - b2) * (flat**2 - v[there])
        v = v + changes
        z.append(spread(changes.abs(), criterion))
        found = sum(z[-4:]) / 4 if len(z) >= 4 else None
        if due is None and found is not None and found < eps:
            due = t + 1
            assert optimizer.switch_value() is None
        elif due is None:
            assert optimizer.switch_value() == (found if found is None else pytest.approx(found, rel=1e-9))
        assert optimizer.phase == ("precondition" if due is None else "masks")
    assert due is not None and 5 < due < 60 and optimizer.param_groups[0]["switched_at"] == due


def test_the_criteria_that_the_paper_compares_with() -> None:
    (start, *gradients) = random(2, *[(6, 4)] * 40)
    b2 = 0.8
    for criterion in ("relative", "onebit"):
        p = nn.Parameter(start.clone())
        optimizer = STEP([p], betas=(0.9, b2), criterion=criterion)
        v, norms, due = torch.zeros(6, 4).double(), [], None
        for t, g in enumerate(gradients, 1):
            moves(optimizer, p, [g])
            v = b2 * v + (1 - b2) * g * g
            norms.append(float(v.norm() if criterion == "relative" else v.sum()))
            if criterion == "relative":
                crossed = t > 1 and abs(norms[-1] - norms[-2]) / norms[-2] < RELATIVE
            else:
                crossed = t > 5 and norms[-6] / norms[-1] > 0.96
            due = t if crossed and due is None else due
            assert (optimizer.phase == "masks") == (due is not None)
        assert due is not None and optimizer.param_groups[0]["switched_at"] == due > 1


def test_never_before_t_min_and_always_after_t_max() -> None:
    def switched(**options: Any) -> int | None:
        p = nn.Parameter(torch.ones(2, 4))
        optimizer = STEP([p], betas=(0.9, 0.5), **options)
        moves(optimizer, p, [torch.zeros(2, 4)] * 30)
        found: int | None = optimizer.param_groups[0]["switched_at"]
        return found

    assert switched() == 2  # nothing changes, and the window is 2 long
    assert switched(t_min=7) == 7
    assert switched(total_steps=200) == 20
    assert switched(eps=0.0) is None
    assert switched(eps=0.0, t_max=9) == 9
    assert switched(eps=0.0, total_steps=40) == 20
    assert switched(eps=0.0, total_steps=40, t_max=25) == 25


def test_a_switch_by_hand_and_a_second_one() -> None:
    optimizer, params = two({})
    step(optimizer, params, 0)
    optimizer.start_masks()
    assert {g["phase"] for g in optimizer.param_groups} == {"masks"}
    with pytest.raises(RuntimeError, match="the masks have started already, after step 1"):
        optimizer.start_masks()


def test_groups_that_are_not_sparse_may_go_on_as_adam() -> None:
    optimizer, params = two({"t_max": 2, "freeze_all": False})
    for t in range(2):
        step(optimizer, params, t)
    matrix, vector = params[0], params[-1]
    before = [optimizer.state[p]["exp_avg_sq"].clone() for p in (matrix, vector)]
    step(optimizer, params, 2)
    assert torch.equal(optimizer.state[matrix]["exp_avg_sq"], before[0])
    assert not torch.equal(optimizer.state[vector]["exp_avg_sq"], before[1])


@pytest.mark.parametrize("at", [3, 8])
@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_a_resumed_run_is_the_same_run(at: int, execution: str) -> None:
    """Phase, switch and window are in the state: before the switch, which comes after step 5, and behind it."""
    options = {"lr": 0.02, "betas": (0.9, 0.75), "eps": 0.4, "t_min": 5}
    whole, params = two(options, execution)
    for t in range(12):
        step(whole, params, t)
    half, first = two(options, execution)
    for t in range(at):
        step(half, first, t)
    file = io.BytesIO()
    torch.save((half.state_dict(), [p.detach() for p in first]), file)
    file.seek(0)
    saved, weights = torch.load(file)
    rest, second = two(options, execution)
    for p, w in zip(second, weights, strict=True):
        p.data.copy_(w)
    rest.load_state_dict(saved)
    twin = copy.deepcopy(rest)
    assert rest.switch_value() == half.switch_value() and twin.phase == half.phase
    for t in range(at, 12):
        step(rest, second, t)
    assert 5 <= whole.param_groups[0]["switched_at"] < 8
    assert rest.param_groups[0]["switched_at"] == whole.param_groups[0]["switched_at"]
    assert rest.param_groups[0]["steps"] == 12
    assert all(torch.equal(p, q) for p, q in zip(params, second, strict=True))


def test_a_group_that_comes_late_is_in_the_phase_of_the_others() -> None:
    optimizer, params = two({"t_max": 1})
    step(optimizer, params, 0)
    late = nn.Parameter(torch.ones(2, 4).double())
    optimizer.add_param_group({"params": [late]})
    assert optimizer.param_groups[-1]["phase"] == "masks"
    before = [p.detach().clone() for p in params]
    with pytest.raises(
        RuntimeError, match="parameter 0 of group 2 has its first gradient after the masks have started"
    ):
        step(optimizer, [*params, late], 1)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    late.grad = None
    step(optimizer, params, 1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def masked() -> tuple[nn.Sequential, SparseLayers]:
    model = net()
    with pytest.warns(UserWarning, match="inputs of 0 do not fall into groups of m = 4, these stay dense"):
        return model, sparsify(model)


def test_hidden_layers_are_masked_straight_through() -> None:
    model, layers = masked()
    assert list(layers.layers) == ["2", "4"]  # of the others one has 3 input channels, one is the classifier
    x = torch.randn(5, 3, 4, 4)
    dense = model(x)
    assert torch.equal(dense, net()(x)) and not layers.is_active
    layers.activate()
    weight, original = model[4].weight, model[4].parametrizations["weight"].original
    assert torch.equal(weight, original * n_of_m(original, 2, 4))
    (gradient,) = torch.autograd.grad((weight * torch.arange(32.0).view(8, 4)).sum(), original)
    assert torch.equal(gradient, torch.arange(32.0).view(8, 4))
    assert not torch.equal(model(x), dense)
    assert [len(g["params"]) for g in layers.groups()] == [2, 6]


def test_masks_follow_the_optimizer_and_are_saved_with_the_model() -> None:
    model, layers = masked()
    optimizer = STEP(layers.groups(), lr=0.01, t_max=3)
    layers.follow(optimizer)
    seen = []
    for _ in range(5):
        seen.append(layers.is_active)
        optimizer.zero_grad()
        model(torch.randn(5, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    assert seen == [False, False, False, True, True]
    other, others = masked()
    other.load_state_dict(model.state_dict())
    assert others.is_active
    others.activate(False)
    resumed = STEP(others.groups(), lr=0.01, t_max=3)
    others.follow(resumed)
    assert not others.is_active
    resumed.load_state_dict(optimizer.state_dict())
    assert others.is_active
    before = resumed.state_dict()
    before["param_groups"] = [{**g, "phase": "precondition"} for g in before["param_groups"]]
    resumed.load_state_dict(before)
    assert not others.is_active


def test_an_exported_model_has_two_of_four() -> None:
    """The form that semi-structured kernels take; plain layers again, and the same function."""
    model, layers = masked()
    layers.activate()
    x = torch.randn(5, 3, 4, 4)
    want = model(x)
    exported = layers.export()
    assert exported is model and set(model.state_dict()) == set(net().state_dict())
    assert torch.equal(model(x), want)
    rows = model[2].weight.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    for groups in (rows, model[4].weight.detach().reshape(-1, 4)):
        assert bool(((groups != 0).sum(1) == 2).all())
    assert isinstance(model[4].weight, nn.Parameter)


def test_an_export_without_masks_is_warned_of() -> None:
    _, layers = masked()
    with pytest.warns(UserWarning, match="the masks have not been active") as caught:
        layers.export()
    assert caught[0].filename == __file__


@pytest.mark.gpu
def test_torch_takes_an_exported_weight() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8)).half().cuda()
    layers = sparsify(model)
    layers.activate()
    layers.export()
    dense = model[0].weight.detach()
    compressed = torch.sparse.to_sparse_semi_structured(dense)
    assert torch.equal(compressed.to_dense(), dense)
    x = torch.randn(64, 128, dtype=torch.half, device="cuda")
    torch.testing.assert_close(
        nn.functional.linear(x, compressed), nn.functional.linear(x, dense), rtol=1e-2, atol=1e-2
    )


def test_sr_ste_goes_before_any_memory() -> None:
    """The baseline: no phases."""
    p = nn.Parameter(random(4, (3, 8))[0])
    optimizer = Optimizer([p], chain(rules.sr_ste(2, 4), rules.descend()), lr=0.5, sr_lambda=0.1)
    start = p.detach().clone()
    (move,) = moves(optimizer, p, [torch.zeros_like(start)])
    torch.testing.assert_close(move, 0.05 * start * (1 - n_of_m(start, 2, 4)))
    q = nn.Parameter(torch.ones(5, 6))
    assert not moves(Optimizer([q], chain(rules.sr_ste(), rules.descend())), q, [torch.zeros(5, 6)])[0].any()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: STEP([p], n=4), "STEP: n must be smaller than m = 4, got 4"),
        (lambda p: STEP([p], n=0), r"STEP: n must be in \[1, .*got 0"),
        (lambda p: STEP([p], m=1, n=1), "STEP: m must be in"),
        (lambda p: STEP([p], t_min=5, t_max=4), "STEP: t_min must be at most t_max = 4, got 5"),
        (lambda p: STEP([p], t_min=60, total_steps=100), "STEP: t_min must be at most t_max = 50, got 60"),
        (lambda p: STEP([p], criterion="mean"), "criterion must be one of"),
        (lambda p: STEP([{"params": [p], "phase": "third"}]), "phase must be 'precondition' or 'masks', got 'third'"),
        (
            lambda p: STEP([{"params": [("w", p)], "sparse": True}]),
            r"inputs of w of shape \(2, 6\) do not fall into groups of m = 4",
        ),
        (lambda p: STEP([{"params": [nn.Parameter(torch.ones(4))], "sparse": True}]), r"parameter 0 of shape \(4,\)"),
        (lambda p: rules.sr_ste(4, 4), "n must be in 1 to m - 1 = 3, got 4"),
        (lambda p: sparsify(net(), 4, 4), "n must be in 1 to m - 1, got n = 4, m = 4"),
        (lambda p: sparsify(net(), 0, 4), "got n = 0"),
        (lambda p: sparsify(net(), layers=["0"]), r"inputs of 0 of shape \(8, 3, 3, 3\) do not fall into groups"),
        (lambda p: sparsify(net(), layers=["5"]), "no linear or convolutional layer matches '5'"),
        (lambda p: sparsify(nn.ReLU()), "no layer to mask in ReLU"),
    ],
)
def test_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(nn.Parameter(torch.ones(2, 6)))


def test_what_cannot_be_followed_or_masked_twice() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layers = sparsify(model)
    with pytest.raises(TypeError, match=r"follow\(\) takes a STEP optimizer, got AdamW"):
        layers.follow(AdamW(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 is masked already"):
        sparsify(model, layers=["0"])
    with pytest.warns(UserWarning, match="m = 6 is no power of two"):
        STEP([{"params": [nn.Parameter(torch.ones(2, 6))], "sparse": True}], m=6)


def test_gradients_cannot_be_released() -> None:
    """What has its first gradient after the masks have started would be divided by nothing, unseen."""
    with pytest.raises(ValueError, match="STEP looks at all gradients before or after a step"):
        polyak.optim.release_gradients(STEP([nn.Parameter(torch.ones(4, 4))]))


def test_what_never_had_a_gradient_is_no_hindrance_to_the_masks() -> None:
    """A checkpoint may have asked for its state, whose second moment is of no step."""
    p, q = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    optimizer = STEP([p, q], t_max=2)
    for w in (p, q):
        w.grad = torch.zeros_like(w)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()  # as torch.distributed.checkpoint does to have the state
    optimizer.param_groups[0]["lr"], q.grad = rate, None
    moves(optimizer, p, [torch.ones(4, 4)] * 3)
    assert optimizer.phase == "masks" and optimizer.param_groups[0]["switched_at"] == 2
    q.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="has its first gradient after the masks have started"):
        optimizer.step()


def test_half_precision_and_a_log_that_is_finite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = nn.Parameter(torch.ones(8, 4, dtype=torch.bfloat16))
        optimizer = STEP([{"params": [p], "sparse": True}], betas=(0.9, 0.5), criterion="geometric", eps=0.0)
        moves(optimizer, p, [torch.zeros_like(p)] * 3)
    assert math.isfinite(optimizer.switch_value() or math.nan)
