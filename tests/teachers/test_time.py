"""Times in samples, and averages begun at zero, against sums over the whole past."""

import io
import math

import pytest
import torch
from torch import nn

from polyak.memory import gamma_of_sigma_rel
from polyak.teachers import EMA, Constant, Debiased, HalfLife, Power, reconstruct

BATCHES = [3, 5, 2, 7, 4, 1, 6, 8, 2, 9]


def line(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    put(model, value)
    return model


def put(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


@pytest.mark.parametrize("batch_size", [0, 2.5, math.inf, "8"])
def test_a_batch_size_is_a_whole_number(batch_size):
    ema = EMA(line(), HalfLife(100.0))
    with pytest.raises(ValueError, match="batch_size must be an int >= 1"):
        ema.update(batch_size)
    assert (ema.step, ema.seen, ema.updates) == (0, 0, 0)


def run(ema: EMA, sizes: list[int] = BATCHES, first: int = 0) -> list[float]:
    """Values 1, 4, 9 ... one an update; the (first) average after each."""
    found = []
    for t, size in enumerate(sizes, start=first + 1):
        put(ema.model, float(t * t))
        ema.update(size)
        found.append(ema.averages[0]["weight"].item())
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_half_life_in_samples(every):
    """EDM2's loop: images seen, this batch included, and its ramp."""
    ema = EMA(line(), HalfLife(20.0, 0.5), update_every=every, start="teacher")
    e, seen, last, expected = 0.0, 0, 0, []
    for t, size in enumerate(BATCHES):
        seen += size
        if t % every == 0:
            beta = 0.5 ** ((seen - last) / min(20.0, 0.5 * seen))
            e, last = beta * e + (1 - beta) * (t + 1) ** 2, seen
        expected.append(e)
    assert run(ema) == pytest.approx(expected, rel=1e-12)
    assert (ema.step, ema.seen) == (len(BATCHES), sum(BATCHES))


def test_power_in_samples_and_others_in_calls():
    gamma = gamma_of_sigma_rel(0.1)
    ema = EMA(line(), [Power(0.1), Constant(0.5)])
    e = plain = 1.0
    seen = BATCHES[0]
    run(ema, BATCHES[:1])
    for t, size in enumerate(BATCHES[1:], start=2):
        seen += size
        beta = (1 - size / seen) ** (gamma + 1)
        e, plain = beta * e + (1 - beta) * t * t, (plain + t * t) / 2
    run(ema, BATCHES[1:], first=1)
    assert ema.averages[0]["weight"].item() == pytest.approx(e, rel=1e-12)
    assert ema.averages[1]["weight"].item() == pytest.approx(plain, rel=1e-12)
    assert ema.snapshot()["t"] == seen


def test_equal_batches_change_no_power_average():
    """Its profile is relative to the length of the run."""
    assert run(EMA(line(), Power(0.1)), [64] * 8) == pytest.approx(run(EMA(line(), Power(0.1)), [1] * 8), rel=1e-12)


def test_resumed_in_samples_bit_for_bit():
    straight, resumed = (EMA(line(), [Power(0.1), HalfLife(20.0)], update_every=2) for _ in range(2))
    run(straight, BATCHES[:5])
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for ema in (straight, resumed):
        run(ema, BATCHES[5:], first=5)
    assert resumed.seen == sum(BATCHES)
    for got, want in zip(resumed.averages, straight.averages, strict=True):
        assert torch.equal(got["weight"], want["weight"])


def test_rebuilt_in_samples():
    ema, snapshots = EMA(line(), [Power(0.05), Power(0.10), Power(0.07)]), []
    for t in range(1, 401):
        put(ema.model, math.sin(t / 50))
        ema.update(1 + t % 5)
        if t % 40 == 0:
            snapshots += [ema.snapshot(0), ema.snapshot(1)]
    got, want = reconstruct(snapshots, 0.07)["weight"].item(), ema.averages[2]["weight"].item()
    assert got == pytest.approx(want, abs=1e-2)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("every", [1, 3])
def test_an_average_begun_at_zero_is_read_without_its_bias(decay, every):
    e, n, expected = 0.0, 0, []
    for t in range(len(BATCHES)):
        if t % every == 0:
            e, n = decay * e + (1 - decay) * (t + 1) ** 2, n + 1
        expected.append(e / (1 - decay**n))
    ema = EMA(line(7.0), Debiased(decay), update_every=every)
    assert run(ema) == pytest.approx(expected, rel=1e-9)
    with ema.swapped():
        assert ema.model.weight.item() == pytest.approx(expected[-1], rel=1e-9)


def test_bad_times_change_nothing():
    with pytest.raises(ValueError, match="decay"):
        Debiased(1.0)
    with pytest.raises(ValueError, match=r"start.*Debiased"):
        EMA(line(), Debiased(0.9), start="teacher")
    ema = EMA(line(1.0), Power(0.1))
    for size in (0, -3, math.nan):
        with pytest.raises(ValueError, match="batch_size"):
            ema.update(size)
    assert (ema.step, ema.seen, ema.updates) == (0, 0, 0)
