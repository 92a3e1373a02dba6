"""MoNNA: the rule by hand, its bounds, and all peers in one process."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from polyak.federated import MoNNA, SimulatedPeers, attacks, bound, draw_heard
from polyak.federated.aggregators import NNA, CenteredClipping, Mean, TrimmedMean

N, FALSE, BATCH = 11, 2, 6


def net(dtype: torch.dtype = torch.float64, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).to(dtype)


def batches(m: int, steps: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(m, BATCH, 5, generator=g, dtype=torch.float64), torch.randint(3, (m, BATCH), generator=g))
        for _ in range(steps)
    ]


def peers(attack: attacks.Attack | None = None, n: int = N, norm: bool = False, **h: object) -> SimulatedPeers:
    options = {k: h.pop(k) for k in ("mix_buffers", "chunk_size") if k in h}
    method = MoNNA(**{"lr": 0.3, "momentum": 0.9, "num_byzantine": FALSE, **h})
    generator = torch.Generator().manual_seed(5)
    return SimulatedPeers(net(norm=norm), F.cross_entropy, n, method, attack, generator=generator, classes=3, **options)


def by_hand(attack: attacks.Attack, data: list[tuple[torch.Tensor, torch.Tensor]], decay: float) -> torch.Tensor:
    """One worker at a time, by autograd, distances as they are written."""
    g = torch.Generator().manual_seed(5)
    models = [net() for _ in range(N - FALSE)]
    momenta = [torch.zeros(sum(p.numel() for p in net().parameters()), dtype=torch.float64) for _ in models]
    for t, (x, y) in enumerate(data):
        lr, half, wrong = 0.3 / (t // 2 * 2 / 3 + 1), [], []
        for i, model in enumerate(models):
            flat = nn.utils.parameters_to_vector(model.parameters()).detach()
            found = []
            for labels in (y[i], 2 - y[i]):
                loss = F.cross_entropy(model(x[i]), labels)
                grads = torch.autograd.grad(loss, list(model.parameters()))
                found.append(torch.cat([v.flatten() for v in grads]) + decay * flat)
            momenta[i] = 0.9 * momenta[i] + 0.1 * found[0]
            wrong.append(found[1])
            half.append(flat - lr * momenta[i])
        heard = draw_heard(N - FALSE, N - 2 * FALSE, g)
        stacked = torch.stack(half)
        if attack.flips_labels:
            sent = [stacked.mean(0) - lr * torch.stack(wrong).mean(0)] * FALSE
        else:
            sent = list(attack(stacked, FALSE, generator=g))
        for i, model in enumerate(models):
            received = [half[int(j)] for j in heard[i]] + sent
            near = sorted(received, key=lambda v, i=i: float((v - half[i]).nan_to_num(torch.inf).square().sum()))
            kept = torch.stack(near[: N - 2 * FALSE]).mean(0)
            nn.utils.vector_to_parameters(kept, model.parameters())
    return torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])


@pytest.mark.parametrize("name", attacks.names())
def test_steps_by_hand(name):
    attack, data = attacks.get(name)(), batches(N - FALSE, 5)
    ours = peers(attack, decay=3.0, delta=2, weight_decay=0.02)
    for x, y in data:
        ours.step(x, y)
    torch.testing.assert_close(ours.weights, by_hand(attack, data, 0.02), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [TrimmedMean(FALSE), CenteredClipping(1.0, 3, pivot=0), NNA(FALSE, rounds=2)])
def test_other_rules_and_chunks(rule):
    data = batches(N - FALSE, 3)
    one, two = peers(attacks.ALIE(), rule=rule), peers(attacks.ALIE(), rule=rule, chunk_size=4)
    for x, y in data:
        first, second = one.step(x, y), two.step(x, y)
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("attack", [attacks.Gaussian(), attacks.Mimic(steps=4), None])
def test_resume_is_bit_for_bit(attack):
    def run(cut: int | None) -> SimulatedPeers:
        ours = peers(attack, norm=True, mix_buffers=True)
        for t, (x, y) in enumerate(batches(ours.honest, 6)):
            if t == cut:
                file = io.BytesIO()
                torch.save(ours.state_dict(), file)
                file.seek(0)
                ours = peers(attack, norm=True, mix_buffers=True)
                ours.load_state_dict(torch.load(file))
            ours.step(x, y)
        return ours

    whole, cut = run(None), run(3)
    for key, value in whole.state_dict().items():
        other = cut.state_dict()[key]
        if isinstance(value, dict):
            assert all(torch.equal(value[k], other[k]) for k in value)
        else:
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_buffers_stay_or_are_mixed():
    (x, y), *_ = batches(N - FALSE, 1)
    apart, mixed = peers(attacks.SignFlip(), norm=True), peers(attacks.SignFlip(), norm=True, mix_buffers=True)
    apart.step(x, y)
    mixed.step(x, y)
    layer = net(norm=True)
    layer(x[4])
    torch.testing.assert_close(apart.buffers["1.running_var"][4], layer[1].running_var)
    assert not torch.allclose(mixed.buffers["1.running_var"][4], layer[1].running_var)
    assert apart.buffers["1.num_batches_tracked"].tolist() == [1] * 9
    assert (mixed.buffers["1.running_var"].std(0) < apart.buffers["1.running_var"].std(0)).all()


def test_module_is_not_written_and_workers_can_be_read():
    ours = peers(attacks.FOE(), norm=True)
    before = copy.deepcopy(ours.module.state_dict())
    (x, y), *_ = batches(ours.honest, 1)
    ours.step(x, y)
    outputs = ours.outputs(x[0])
    assert outputs.shape == (9, BATCH, 3) and ours.module.training
    assert all(torch.equal(before[k], v) for k, v in ours.module.state_dict().items())
    model = net(norm=True)
    model.load_state_dict(ours.tensors_of(7), strict=False)
    torch.testing.assert_close(model.eval()(x[0]), outputs[7])
    with pytest.raises(IndexError, match=r"\[0, 9\), got 9"):
        ours.tensors_of(9)


def test_it_learns_under_every_attack_where_the_mean_does_not():
    g = torch.Generator().manual_seed(1)
    truth = torch.randn(5, 3, generator=g, dtype=torch.float64)

    def accuracy(attack: attacks.Attack, **h: object) -> float:
        ours = peers(attack, **h)
        for x, _ in batches(9, 60):
            ours.step(x, (x @ truth).argmax(-1))
        x = torch.randn(400, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return float((ours.outputs(x).argmax(-1) == (x @ truth).argmax(-1)).double().mean(1).min())

    for attack in (attacks.ALIE(), attacks.FOE(1.5), attacks.SignFlip(), attacks.LabelFlip(), attacks.NotFinite("inf")):
        assert accuracy(attack, lr=1.0) > 0.8
    assert accuracy(attacks.SignFlip(), lr=1.0, rule=Mean()) < 0.6


def test_nobody_lies_without_an_attack():
    ours = peers(None)
    assert ours.honest == N
    (x, y), *_ = batches(N, 1)
    ours.step(x, y)
    heard = draw_heard(N, N - FALSE, torch.Generator().manual_seed(5))
    assert heard.shape == (N, N - FALSE)


@given(st.integers(1, 30), st.data())
def test_who_is_heard(m, data):
    count = data.draw(st.integers(1, m))
    heard = draw_heard(m, count, torch.Generator().manual_seed(m))
    assert heard.shape == (m, count) and heard[:, -1].tolist() == list(range(m))
    assert all(len(set(row)) == count for row in heard.tolist())
    assert int(heard.min()) >= 0 and int(heard.max()) < m


def test_bounds():
    found = bound(26, 5)
    assert (found.received, found.averaged, found.possible, found.guaranteed) == (21, 16, 8, 5)
    assert "26 workers, 5 of them liars" in str(found) and "up to 5 (n > 5 f)" in str(found)
    with pytest.raises(ValueError, match=r"num_byzantine must be at most 3 of 11 workers \(n > 3 f\), got 4"):
        bound(11, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MoNNA(num_byzantine=2).fits(11)
        with pytest.raises(UserWarning, match=r"3 of 11 workers; its guarantee holds up to 2 \(n > 5 f\)"):
            MoNNA(num_byzantine=3).fits(11)


@given(st.integers(0, 2**32 - 1))
def test_distances_once_are_distances_each_time(seed):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(12, 4, generator=g, dtype=torch.float64)
    received = torch.stack([torch.randperm(12, generator=g)[:9] for _ in range(12)])
    rule = NNA(3)
    want = torch.stack([NNA(3, pivot=5)(rows[row]) for row in received])
    torch.testing.assert_close(rule.for_each(rows, received, 5), want, rtol=1e-12, atol=1e-14)
    rows[7] = torch.nan
    if bool((received[:, 5] != 7).all()):
        want = torch.stack([NNA(3, pivot=5)(rows[row]) for row in received])
        torch.testing.assert_close(rule.for_each(rows, received, 5), want, rtol=1e-12, atol=1e-14)


def test_a_liar_may_tell_each_something_else():
    method, half = MoNNA(num_byzantine=FALSE), torch.randn(9, 4, dtype=torch.float64)
    heard = draw_heard(9, 7, torch.Generator().manual_seed(0))
    same = torch.randn(FALSE, 4, dtype=torch.float64)
    torch.testing.assert_close(method.mixed(half, heard, same), method.mixed(half, heard, same.expand(9, -1, -1)))
    other = torch.randn(9, FALSE, 4, dtype=torch.float64)
    want = NNA(FALSE, pivot=6)(torch.cat([half[heard[3]], other[3]]))
    torch.testing.assert_close(method.mixed(half, heard, other)[3], want)


def test_a_memory_of_another_length_is_refused():
    ours, other = peers(attacks.Mimic(steps=4)), peers(attacks.Mimic(steps=4), norm=True)
    for one in (ours, other):
        one.step(*batches(9, 1)[0])
    ours.load_state_dict(ours.state_dict())
    with pytest.raises(ValueError, match="its memory has 'direction' as"):
        ours.load_state_dict({**ours.state_dict(), "memory": other.state_dict()["memory"]})


def test_dropout_goes_on_bit_for_bit_whatever_else_is_drawn():
    def made() -> SimulatedPeers:
        model = nn.Sequential(net()[:2], nn.Dropout(0.5), net()[2])
        return SimulatedPeers(model, F.cross_entropy, N, MoNNA(num_byzantine=FALSE), attacks.ALIE(),
                              generator=torch.Generator().manual_seed(5))  # fmt: skip

    whole, cut = made(), made()
    x, y = batches(9, 1)[0]
    whole.step(x, y)
    cut.load_state_dict(whole.state_dict())
    before = torch.manual_seed(99).get_state()
    first, second = whole.step(x, y), cut.step(x, y)
    assert torch.equal(first, second) and torch.equal(whole.weights, cut.weights)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left as it was"
    assert not torch.equal(first, whole.step(x, y)), "a mask of its own in each step"


def test_refused_and_nothing_changed():
    ours = peers(attacks.ALIE())
    before = copy.deepcopy(ours.state_dict())
    (x, y), *_ = batches(9, 1)
    bad = x.clone()
    bad[3, 0, 0] = torch.nan
    for inputs, targets, words in [
        (x[:4], y, r"inputs must hold a batch for each of 9 honest workers, got \(4,"),
        (x, y[:2], "targets must hold"),
        (bad, y, r"finite, those of rows \[3\] are not"),
    ]:
        with pytest.raises(ValueError, match=words):
            ours.step(inputs, targets)
    state = ours.state_dict()
    assert torch.equal(state["weights"], before["weights"]) and torch.equal(state["generator"], before["generator"])
    for change, words in [
        ({"weights": state["weights"][:3]}, "its tensors has 'weights' as"),
        ({"momenta": 3}, "its tensors has int as 'momenta'"),
        ({"weights": state["weights"] + 1, "memory": {"mean": torch.zeros(4)}}, "its memory has the names"),
        ({"weights": state["weights"] + 1, "steps": -1}, "steps must be in"),
        ({"more": 1}, "missing or too many"),
    ]:
        with pytest.raises(ValueError, match=words):
            ours.load_state_dict({**state, **change})
    with pytest.raises(RuntimeError):
        ours.load_state_dict({**state, "weights": state["weights"] + 1, "generator": torch.zeros(3, dtype=torch.uint8)})
    assert torch.equal(ours.weights, before["weights"]) and torch.equal(ours.generator.get_state(), before["generator"])
    made = torch.Generator()
    for build, words in [
        (lambda: SimulatedPeers(net(), F.cross_entropy, 6, MoNNA(num_byzantine=2), generator=made), "at most 1 of 6"),
        (lambda: peers(attacks.ALIE(), num_byzantine=0), "attack must be None where num_byzantine is 0"),
        (lambda: SimulatedPeers(net(), F.cross_entropy, N, MoNNA(), attacks.LabelFlip(), generator=made), "classes"),
        (lambda: SimulatedPeers(nn.ReLU(), F.cross_entropy, N, MoNNA(), generator=made), "trainable parameters"),
        (lambda: MoNNA(momentum=1.0), "momentum must be in"),
        (lambda: draw_heard(4, 5, made), r"count must be in \[1, 4\], got 5"),
    ]:
        with pytest.raises(ValueError, match=words):
            build()
