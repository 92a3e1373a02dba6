"""GSM: against an independent transcription, under a scaler, and what pruning promises."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim import GSM, release_gradients
from tests.optim.moves import random

SHAPES = {"linear": (6, 5), "conv": (4, 2, 3, 3), "bias": (6,), "stack": (2, 3, 4), "scalar": ()}
RATIO = 0.2


def params(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(w.to(dtype)) for n, w in zip(SHAPES, random(seed, *SHAPES.values()), strict=True)}


def give(weights: dict[str, nn.Parameter], seed: int, scale: float = 1.0, without: tuple[str, ...] = ()) -> None:
    for (name, p), g in zip(weights.items(), random(seed, *SHAPES.values()), strict=True):
        p.grad = None if name in without else scale * g.to(p.dtype)


def transcribed(
    w: dict[str, np.ndarray], z: dict[str, Any], g: dict[str, np.ndarray | None], prunable: list[str], h: dict[str, Any]
) -> None:
    """A step as the paper has it, in place."""
    salience = {n: np.zeros_like(w[n]) if g[n] is None else np.abs(g[n] * w[n]) for n in prunable}
    together = np.sort(np.concatenate([s.reshape(-1) for s in salience.values()]))[::-1]
    threshold = together[int(h["nonzero_ratio"] * together.size) - 1]
    for n, gradient in g.items():
        if gradient is None:
            continue
        kept = gradient * (salience[n] >= threshold) if n in prunable else gradient
        d = kept + h["weight_decay"] * w[n]
        z[n] = d if z.get(n) is None else h["momentum"] * z[n] + d
        w[n] = w[n] - h["lr"] * (d + h["momentum"] * z[n] if h["nesterov"] else z[n])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("prunable", [None, True])
def test_as_transcribed(nesterov: bool, execution: Any, prunable: bool | None) -> None:
    h = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nonzero_ratio": RATIO, "nesterov": nesterov}
    weights = params()
    spared = {"params": [weights["conv"]], "prunable": False}
    others = {"params": [p for n, p in weights.items() if n != "conv"], "prunable": prunable}
    optimizer = GSM([others, spared], execution=execution, **h)
    ranked = ["linear"] if prunable is None else ["linear", "bias", "stack", "scalar"]
    w, z = {n: p.detach().numpy().copy() for n, p in weights.items()}, {}
    for t in range(8):
        give(weights, 10 + t, without=("linear",) if t == 3 else ())
        transcribed(w, z, {n: None if p.grad is None else p.grad.numpy() for n, p in weights.items()}, ranked, h)
        optimizer.step()
        for n, p in weights.items():
            np.testing.assert_allclose(p.detach().numpy(), w[n], rtol=1e-11, atol=1e-13)


def test_a_scaled_loss_ranks_alike() -> None:
    plain, scaled = params(), params()
    first, second = GSM(plain.values(), nonzero_ratio=RATIO), GSM(scaled.values(), nonzero_ratio=RATIO)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for t in range(5):
        give(plain, t)
        first.step()
        give(scaled, t, scale=scaler.get_scale())
        if t % 2:
            scaler.unscale_(second)
        scaler.step(second)
        scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(plain.values(), scaled.values(), strict=True))


def test_the_share_that_is_active() -> None:
    weights = params()
    optimizer = GSM(weights.items(), nonzero_ratio=RATIO)
    give(weights, 1)
    notes = optimizer.diagnostics()
    active = sum(notes[n]["active_share"] * weights[n].numel() for n in ("linear", "conv"))
    assert round(active) == int(RATIO * (30 + 72))
    assert "active_share" not in notes.get("bias", {})


def test_cut_weights_shrink_as_told() -> None:
    p = nn.Parameter(torch.ones(10, 10, dtype=torch.float64))
    optimizer = GSM([p], lr=0.01, momentum=0.9, weight_decay=0.02, nonzero_ratio=0.01)
    for _ in range(3000):
        p.grad = torch.zeros_like(p)
        p.grad[0, 0] = 1e-9
        optimizer.step()
    told = optimizer.shrinkage(3000)
    assert told == pytest.approx(6.0)
    assert float(p.detach()[5, 5]) == pytest.approx(math.exp(-told), rel=0.2)
    with pytest.warns(UserWarning, match=r"exp\(-2\) alone and do not reach zero; raise momentum"):
        optimizer.shrinkage(1000)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize(("weight", "gradient"), [(True, False), (False, True), (True, True)])
def test_memory_formats_choose_the_same_weights(weight: bool, gradient: bool, execution: Any) -> None:
    plain, other = params(), params()
    conv, last = other["conv"], torch.channels_last
    if weight:
        conv.data = conv.data.to(memory_format=last)
    optimizers = [GSM(w.values(), lr=0.05, nonzero_ratio=RATIO, execution=execution) for w in (plain, other)]
    for t in range(4):
        for weights, optimizer in zip((plain, other), optimizers, strict=True):
            give(weights, 10 + t)
            for p in weights.values():
                p.grad.round_(decimals=1)  # type: ignore[union-attr]  # some are equal
            if gradient and weights is other:
                conv.grad = conv.grad.to(memory_format=last)  # type: ignore[union-attr]
            optimizer.step()
        assert all(torch.equal(plain[n], other[n]) for n in SHAPES)
    with torch.no_grad():
        for weights in (plain, other):
            for p in weights.values():
                p.round_(decimals=1)
    masks, others = (optimizer.prune() for optimizer in optimizers)
    assert all(map(torch.equal, masks, others))


def count(weights: dict[str, nn.Parameter]) -> int:
    return sum(int((weights[n] != 0).sum()) for n in ("linear", "conv"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.98))
def test_pruning_is_exact_also_among_equals(seed: int, ratio: float) -> None:
    weights = params(seed)
    with torch.no_grad():
        weights["linear"].copy_(weights["linear"].round())  # many equal ones
        weights["linear"][weights["linear"] == 0] = 1.0
    kept = {n: p.detach().clone() for n, p in weights.items()}
    masks = GSM(weights.values(), nonzero_ratio=ratio).prune()
    assert count(weights) == int(ratio * 102)
    for (n, p), mask in zip(weights.items(), masks, strict=True):
        assert torch.equal(p, kept[n] * mask)
        assert n in ("linear", "conv") or bool(mask.all())
    lost = max((float(kept[n][~m].abs().amax()) for n, m in zip(weights, masks, strict=True) if not m.all()), default=0)
    assert lost <= min(float(p[p != 0].abs().amin()) for p in (weights["linear"], weights["conv"]) if bool(p.any()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_the_mask_is_kept_and_resumed(dtype: torch.dtype, execution: Any) -> None:
    def trained(weights: dict[str, nn.Parameter], optimizer: GSM, times: range) -> None:
        for t in times:
            give(weights, t)
            optimizer.step()

    weights = params(dtype=dtype)
    optimizer = GSM(weights.values(), nonzero_ratio=RATIO, weight_decay=0.01, execution=execution)
    trained(weights, optimizer, range(3))
    masks = optimizer.prune()
    trained(weights, optimizer, range(3, 5))
    assert count(weights) == int(RATIO * 102)
    assert torch.equal(optimizer.state[weights["linear"]]["mask"].bool(), masks[0])
    buffer = io.BytesIO()
    torch.save((optimizer.state_dict(), {n: p.detach() for n, p in weights.items()}), buffer)
    buffer.seek(0)
    state, saved = torch.load(buffer, weights_only=True)
    other = params(7, dtype)
    for n, p in other.items():
        p.data.copy_(saved[n])
    resumed = GSM(other.values(), execution=execution)
    resumed.load_state_dict(state)
    trained(weights, optimizer, range(5, 9))
    trained(other, resumed, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), other.values(), strict=True))
    assert count(other) == int(RATIO * 102)


def test_a_ticket_from_the_masks_of_another_run() -> None:
    trained, fresh = params(1), params(2)
    masks = GSM(trained.values(), nonzero_ratio=RATIO).prune()
    start = {n: p.detach().clone() for n, p in fresh.items()}
    optimizer = GSM(fresh.values(), nonzero_ratio=RATIO)
    optimizer.prune(masks)
    for p, mask, before in zip(fresh.values(), masks, start.values(), strict=True):
        assert torch.equal(p, before * mask)
    for t in range(3):
        give(fresh, t)
        optimizer.step()
    for name, mask in zip(fresh, masks, strict=True):
        assert torch.equal(fresh[name] != 0, mask)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"GSM: nonzero_ratio must be in \(0, 1\), got"):
        GSM(params().values(), nonzero_ratio=ratio)


def unchanged(weights: dict[str, nn.Parameter], optimizer: GSM, error: type, words: str, step: Any = None) -> None:
    before = {n: p.detach().clone() for n, p in weights.items()}
    with pytest.raises(error, match=words):
        (step or optimizer.step)()
    assert all(torch.equal(p, before[n]) for n, p in weights.items())
    assert not any(optimizer.state.values())
    assert not optimizer.param_groups[0]["pruned"]


def test_what_is_refused_changes_nothing() -> None:
    weights = params()
    optimizer = GSM(weights.values(), nonzero_ratio=0.001)
    give(weights, 0)
    unchanged(weights, optimizer, ValueError, "nonzero_ratio = 0.001 keeps no weight of 102")
    unchanged(weights, optimizer, ValueError, "keeps no weight", optimizer.prune)
    optimizer = GSM(weights.values())
    bad: list[tuple[Any, str]] = [
        ([torch.ones(2, dtype=torch.bool)], "masks must be Booleans of shapes"),
        ([torch.ones(s) for s in SHAPES.values()], "masks must be Booleans"),
    ]
    for masks, words in bad:
        unchanged(weights, optimizer, ValueError, words, lambda masks=masks: optimizer.prune(masks))
    for value in (math.nan, math.inf):
        give(weights, 0)
        assert weights["conv"].grad is not None
        weights["conv"].grad[0, 0, 0, 0] = value
        unchanged(weights, optimizer, RuntimeError, "finite")
    give(weights, 0)
    weights["linear"].grad = Tensor(6, 5).zero_().double().to_sparse()
    unchanged(weights, optimizer, RuntimeError, "sparse")


def test_released_gradients_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match=r"reads \['threshold'\], known only after the pass"):
        release_gradients(GSM([nn.Parameter(torch.ones(4, 5))]))


def test_one_ratio_for_all_groups() -> None:
    weights = list(params().values())
    optimizer = GSM(weights[:2], nonzero_ratio=RATIO)
    with pytest.raises(ValueError, match=r"the same in all groups, 0.2, got 0.3"):
        optimizer.add_param_group({"params": weights[2:], "nonzero_ratio": 0.3})
    optimizer.add_param_group({"params": weights[2:]})
    assert len(optimizer.param_groups) == 2


def test_without_anything_to_prune_it_is_sgd() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    ours = GSM([a], lr=0.1)
    theirs = torch.optim.SGD([b], lr=0.1, momentum=0.98, weight_decay=1e-4)
    for t in range(3):
        a.grad, b.grad = torch.full((3,), 1.0 + t), torch.full((3,), 1.0 + t)
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b)
