"""What the rules promise, as properties: identities of the papers, and rules that users write and place."""

import copy
import itertools
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.tensor import Shard

from polyak.memory.averages import ema
from polyak.optim import (
    CSGDM,
    SCALE,
    SGD,
    TAM,
    AdamP,
    AdamW,
    Adan,
    AdEMAMix,
    CAdamW,
    CAdan,
    CLion,
    Context,
    Flow,
    Grams,
    Hyper,
    Interval,
    Lion,
    Muon,
    Optimizer,
    Rule,
    Slot,
    chain,
    factory,
    rules,
)  # fmt: skip
from polyak.optim.engine import intake, units
from polyak.optim.engine.sharding import check_shards
from polyak.optim.methods.ademamix import slow_beta
from tests.optim.moves import moves, random

SEEDS = st.integers(0, 2**31)
SHAPES = st.sampled_from([(7,), (3, 5), (1,), (), (130,), (4, 2, 3, 3)])


@settings(max_examples=25)
@given(SEEDS, SHAPES, st.sampled_from([CAdamW, CLion, CSGDM]), st.sampled_from(["mean", "count", "none"]))
def test_cautious_steps_never_climb(seed: int, shape: tuple[int, ...], method: type, scale: Any) -> None:
    start, *gradients = random(seed, *[shape] * 4)
    p = nn.Parameter(start)
    for move, g in zip(moves(method([p], lr=1.0, mask_scale=scale), p, gradients), gradients, strict=True):
        assert bool((move * g >= 0).all())


@settings(max_examples=25)
@given(SEEDS, SHAPES)
def test_grams_has_the_sign_of_the_gradient_and_the_size_of_adam(seed: int, shape: tuple[int, ...]) -> None:
    start, *gradients = random(seed, *[shape] * 4)
    a, b = nn.Parameter(torch.zeros_like(start)), nn.Parameter(torch.zeros_like(start))
    signed = moves(Grams([a], eps_form="after", eps=1e-8, lr=1e-2), a, gradients)
    plain = moves(AdamW([b], weight_decay=0.0, lr=1e-2), b, gradients)
    for u, v, g in zip(signed, plain, gradients, strict=True):
        torch.testing.assert_close(u, v.abs() * g.sign(), rtol=1e-9, atol=1e-15)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([(3, 5), (6, 40), (4, 2, 3, 3)]), st.sampled_from([0.1, 1.0, 3.0]), st.booleans())
def test_adamp_removes_the_radial_part_or_nothing(
    seed: int, shape: tuple[int, ...], delta: float, nesterov: bool
) -> None:
    start, *gradients = random(seed, *[shape] * 3)
    p, q = nn.Parameter(start), nn.Parameter(start.clone())
    optimizer = AdamP([p], lr=1e-3, delta=delta, nesterov=nesterov)
    plain = AdamP([q], lr=1e-3, delta=0.0, nesterov=nesterov)
    for g in gradients:
        q.data.copy_(p.data)
        p.grad, q.grad = g.clone(), g.clone()
        before = p.detach().clone()
        projected = optimizer.diagnostics()["parameter 0 of group 0"]["projected"]
        optimizer.step()
        plain.step()
        u = (before - p.detach()).flatten(1)
        along = u * before.flatten(1)
        if projected:
            assert bool((along.sum(1).abs() < 1e-8).all()) or abs(float(along.sum())) < 1e-8
        else:
            assert torch.equal(p, q)


def test_adamp_always_projects_scale_invariant_weights() -> None:
    """f(w / |w|) has a gradient orthogonal to w in every row, so the test triggers and weights do not grow."""
    w = nn.Parameter(random(1, (6, 20))[0])
    optimizer = AdamP([w], lr=0.1, weight_decay=0.0)
    for g in random(2, *[(6, 20)] * 5):
        v = w.detach()
        w.grad = g - (g * v).sum(1, keepdim=True) / (v * v).sum(1, keepdim=True) * v
        assert optimizer.diagnostics()["parameter 0 of group 0"]["projected"] == 1.0
        optimizer.step()


def test_nesterov_momentum_estimates_without_looking_ahead() -> None:
    """NME of the Adan paper: gradients taken ahead, and gradients with their difference, give the same path."""
    r, eta, steps = 0.9, 0.02, 60
    a = torch.diag(torch.linspace(0.1, 3.0, 6, dtype=torch.float64))
    x = random(0, (6,))[0]
    p = nn.Parameter(x.clone())
    optimizer = SGD([p], lr=eta, momentum=r, nesterov=True)
    y, m, estimate, last = x.clone(), torch.zeros(6, dtype=torch.float64), torch.zeros(6), torch.zeros(6)
    for _ in range(steps):
        m = r * m + a @ (x - eta * r * m)
        x = x - eta * m
        g = a @ y
        estimate, last = r * estimate + g + r * (g - last), g
        y = y - eta * estimate
        p.grad = a @ p.detach()
        optimizer.step()
        torch.testing.assert_close(y, x - eta * r * m, rtol=0, atol=1e-12)
        torch.testing.assert_close(p.detach(), y, rtol=0, atol=1e-12)


def test_adan_without_its_root_is_nesterov_momentum_estimation() -> None:
    """A huge eps makes the root constant; the difference of the first step is 0 by Adan's convention."""
    r, eta, huge = 0.9, 0.02, 1e12
    a = torch.diag(torch.linspace(0.1, 3.0, 6, dtype=torch.float64))
    p = nn.Parameter(random(0, (6,))[0])
    y = p.detach().clone()
    optimizer = Adan([p], betas=(r, r, 0.99), eps=huge)
    estimate, last = torch.zeros(6), a @ y
    for k in range(1, 40):
        optimizer.param_groups[0]["lr"] = eta * huge * (1 - r**k) / (1 - r)  # undoes averaging and bias correction
        p.grad = a @ p.detach()
        optimizer.step()
        g = a @ y
        estimate, last = r * estimate + g + r * (g - last), g
        y = y - eta * estimate
        torch.testing.assert_close(p.detach(), y, rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(SEEDS, SHAPES, st.booleans())
def test_ademamix_without_its_slow_average_is_adamw(seed: int, shape: tuple[int, ...], fast: bool) -> None:
    start, *gradients = random(seed, *[shape] * 4)
    a, b = nn.Parameter(start), nn.Parameter(start.clone())
    b1 = 0.9 if fast else 0.0
    mixed = moves(AdEMAMix([a], alpha=0.0, betas=(b1, 0.999, 0.9999), weight_decay=0.1), a, gradients)
    plain = moves(AdamW([b], betas=(b1, 0.999), weight_decay=0.1), b, gradients)
    for u, v in zip(mixed, plain, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-11, atol=1e-14)


@settings(max_examples=50)
@given(st.floats(0.5, 0.95), st.floats(0.99, 0.99999), st.integers(3, 1000))
def test_slow_beta_lets_the_half_life_grow_linearly(start: float, end: float, warmup: int) -> None:
    betas = [slow_beta(start, end, t, warmup) for t in range(warmup + 3)]
    assert all(a <= b for a, b in itertools.pairwise(betas)) and betas[-1] == end
    assert betas[0] == pytest.approx(start, abs=1e-7)
    lives = [math.log(0.5) / math.log(b) for b in betas[: warmup + 1]]
    for t, life in enumerate(lives):
        assert life == pytest.approx(lives[0] + (lives[-1] - lives[0]) * t / warmup, rel=2e-3)


@settings(max_examples=25)
@given(SEEDS, SHAPES, st.floats(0.1, 0.9), st.floats(0.9, 0.999))
def test_lion_reads_a_mix_of_new_memory_and_gradient(seed: int, shape: tuple[int, ...], b1: float, b2: float) -> None:
    start, *gradients = random(seed, *[shape] * 4)
    p = nn.Parameter(start)
    optimizer = Lion([p], lr=0.5, betas=(b1, b2))
    for g in gradients:
        (move,) = moves(optimizer, p, [g])
        z = b1 / b2 * optimizer.state[p]["exp_avg"] + (1 - b1 / b2) * g
        torch.testing.assert_close(move, 0.5 * z.sign())


def test_torque_of_steady_and_of_alternating_gradients() -> None:
    g = random(0, (4, 5))[0]
    p, q = nn.Parameter(torch.zeros(4, 5).double()), nn.Parameter(torch.zeros(4, 5).double())
    steady, shaken = TAM([p], lr=0.1), TAM([q], lr=0.1, momentum=0.5)
    moves(steady, p, [g] * 300)
    moves(shaken, q, [g, -g] * 100)
    p.grad, q.grad = g, g
    assert steady.diagnostics()["parameter 0 of group 0"]["damping"] == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(steady.state[p]["momentum_buffer"], g / (1 - 0.9), rtol=1e-6, atol=0)
    assert shaken.diagnostics()["parameter 0 of group 0"]["damping"] < 0.1


@settings(max_examples=15)
@given(SEEDS, st.floats(-3, 3), st.sampled_from([(6, 4), (4, 9), (2, 5, 3), (4, 2, 3, 3)]), st.booleans())
def test_muon_forgets_the_scale_of_the_gradient(seed: int, power: float, shape: tuple[int, ...], exact: bool) -> None:
    start, *gradients = random(seed, *[shape] * 4)
    a, b = nn.Parameter(start), nn.Parameter(start.clone())
    options: dict[str, Any] = {"ns_eps": 1e-14, "ns_coefficients": "svd" if exact else "original"}
    one = moves(Muon([a], **options), a, gradients)
    other = moves(Muon([b], **options), b, [g * 10**power for g in gradients])
    for u, v in zip(one, other, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-6, atol=1e-9)


def test_places_are_not_the_end_of_the_chain() -> None:
    """The published C-Adan masks the first-moment part only; the same mask at the end is another method."""
    start, *gradients = random(3, *[(40,)] * 6)
    options = {"lr": 1e-2, "betas": (0.98, 0.92, 0.99)}

    def path(make: Any) -> Tensor:
        p = nn.Parameter(start.clone())
        return torch.stack(moves(make([p]), p, gradients))

    mask = rules.cautious()
    placed = path(lambda ps: Optimizer(ps, chain(rules.adan().at("exp_avg", mask), rules.descend()), **options))
    through_chain = path(lambda ps: Optimizer(ps, chain(rules.adan(), rules.descend()).at("exp_avg", mask), **options))
    named = path(lambda ps: CAdan(ps, **options))
    at_end = path(lambda ps: Optimizer(ps, chain(rules.adan(), mask, rules.descend()), **options))
    assert torch.equal(placed, named) and torch.equal(through_chain, named)
    assert not torch.allclose(at_end, named, rtol=1e-3)
    assert bool((at_end * torch.stack(gradients) >= 0).all()) and not bool((named * torch.stack(gradients) >= 0).all())


@factory
def unit_momentum(floor: float = 1e-12) -> Rule:
    """A rule of a user: momentum brought to a root mean square of 1 over the tensor."""

    def scalars(h: Any, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["memory"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.slow, x.u, c.rate)
        size = c.mean(m * m).sqrt()
        c.note("size", size)
        return x.but(u=m / (size + floor)), {"slow": m}

    known = (Hyper("memory", 0.9, Interval(0.0, 1.0), "retention of the momentum"),)
    return Rule("unit_momentum", update, scalars, (Slot("slow"),), known)


@pytest.mark.parametrize("execution", ["eager", "batched", "compiled"])
def test_a_rule_of_a_user(execution: Any) -> None:
    whole = chain(rules.decay("decoupled"), unit_momentum(), rules.descend())
    starts = random(5, (200, 190), (30, 4), (5,), (5,))
    params = [nn.Parameter(w.clone()) for w in starts]
    optimizer = Optimizer(params, whole, lr=0.1, memory=0.8, weight_decay=0.5, execution=execution)
    memories = [torch.zeros_like(w) for w in starts]
    for t in range(4):
        gradients = random(10 + t, *[w.shape for w in starts])
        if t == 2:
            params, optimizer = pickle.loads(pickle.dumps(copy.deepcopy((params, optimizer))))
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
        for i, g in enumerate(gradients):
            memories[i] = 0.8 * memories[i] + 0.2 * g
            starts[i] = starts[i] * (1 - 0.05) - 0.1 * memories[i] / (memories[i].square().mean().sqrt() + 1e-12)
    for p, w, m in zip(params, starts, memories, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(optimizer.state[p]["slow"], m, rtol=1e-10, atol=1e-12)
    assert optimizer.diagnostics().keys() == {f"parameter {i} of group 0" for i in range(4)}
    assert optimizer.param_groups[0]["method"] == "decay_decoupled+unit_momentum+descend"


@factory
def shared_length(name: str, least_dims: int) -> Rule:
    """Divide the direction by its length over all tensors that the rule applies to."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u / c.total(x.u.square()).sqrt().to(x.u.dtype)), {}

    return Rule(name, update, applies=lambda shape: len(shape) >= least_dims)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize("matrices_first", [True, False])
def test_a_total_waits_for_tensors_that_have_other_questions_before_it(execution, matrices_first):
    """The vector asks for one total, the matrix for two; the one that both ask for is over both."""
    links = [shared_length("matrices", 2), shared_length("all", 0)]
    rules_in_order = links if matrices_first else links[::-1]
    matrix, vector = random(3, (3, 4), (5,))
    params = [nn.Parameter(torch.zeros_like(t)) for t in (matrix, vector)]
    params[0].grad, params[1].grad = matrix, vector
    Optimizer(params, chain(*rules_in_order, rules.descend()), lr=1.0, execution=execution).step()
    if matrices_first:
        u = matrix / matrix.norm()
        length = torch.sqrt(u.square().sum() + vector.square().sum())
        expected = u / length, vector / length
    else:
        length = torch.sqrt(matrix.square().sum() + vector.square().sum())
        expected = matrix / matrix.norm(), vector / length
    for p, u in zip(params, expected, strict=True):
        torch.testing.assert_close(-p.detach(), u, rtol=1e-12, atol=0)


def test_totals_in_opposite_orders_are_refused():
    """Groups of one optimizer that would wait for each other."""
    one, two = shared_length("one", 0), shared_length("two", 0)
    orders = [chain(one, two, rules.descend()), chain(two, one, rules.descend())]

    class Mixed(Optimizer):
        def chain_of(self, group):
            return orders[group.get("order", 0)]

    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(3)
    optimizer = Mixed([{"params": [params[0]]}, {"params": [params[1]], "order": 1}], orders[0], lr=1.0)
    for refused in (optimizer.explain, optimizer.step):
        with pytest.raises(ValueError, match="opposite orders"):
            refused()
    assert not optimizer.state and not params[0].any()


@pytest.mark.parametrize("execution", ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_rule_may_read_the_number_of_elements_and_ask_nothing(execution):
    counted = Rule("counted", lambda x, s, c: (x.but(u=x.u * c.numel.to(x.u.dtype)), {}))
    weights = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    optimizer = Optimizer(weights, chain(counted, rules.descend()), lr=0.5, execution=execution)
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.flatten()[0].item() for p in weights] == [-6.0, -2.5]


def test_a_rule_that_chooses_between_coefficients_keeps_the_dtype():
    def update(x, s, c):
        return x.but(u=x.u * torch.where(x.u > 0, c.up, c.down)), {}

    rule = Rule("chosen", update, lambda h, t: {"up": 2.0, "down": 1.0})
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    weight.grad = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.bfloat16)
    Optimizer([weight], chain(rule, rules.descend()), lr=0.5, rounding="stochastic").step()
    assert weight.tolist() == [-1.0, 0.5, -2.0, 1.0]


def test_scalars_may_return_one_and_the_same_dict():
    constant = {"rate": 1.0}
    own = Rule("own", lambda x, s, c: (x.but(u=c.place("m", s.m + x.u)), {"m": s.m + x.u}), lambda h, t: constant,
               (Slot("m"),), places=("m",))  # fmt: skip
    other = Rule("other", lambda x, s, c: (x.but(u=x.u * c.k), {}), lambda h, t: {"k": 1.0})
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    Optimizer([weight], chain(own.at("m", other), rules.descend()), lr=0.5).step()
    assert constant == {"rate": 1.0}


def test_a_read_out_behind_a_place_may_read_the_loss():
    other = Rule("lossy", lambda x, s, c: (x.but(u=x.u * c.loss.to(x.u.dtype)), {}), inputs=("loss",))
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    weight.grad = torch.ones(2, dtype=torch.float64)
    Optimizer([weight], chain(rules.heavy_ball().at("momentum_buffer", other), rules.descend()), lr=0.5).step(loss=3.0)
    assert weight.tolist() == [-1.5, -1.5]


def test_factories_refuse_what_they_would_misread():
    with pytest.raises(ValueError, match=r"decay: form must be one of \['decoupled', .*\], got 'l2'"):
        rules.decay("l2")
    with pytest.raises(ValueError, match="adam: eps_form must be one of"):
        rules.adam(eps_form="befor")
    with pytest.raises(TypeError, match="by keyword alone"):
        factory(lambda *, k=1.0: rules.descend())

    @factory
    def listed(values):
        return rules.descend()

    with pytest.raises(TypeError, match="listed: arguments must be hashable"):
        listed([1, 2])


def test_an_optimizer_without_a_chain_is_refused():
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(TypeError, match=r"rules must be a chain.*got None"):
        Optimizer([weight])
    with pytest.raises(TypeError, match=r"rules must be a chain.*got Rule"):
        Optimizer([weight], rules.descend())


def test_explain_names_what_stands_behind_a_place():
    assert "adam[exp_avg: cautious] > descend" in CAdamW([nn.Parameter(torch.zeros(2))]).explain()


def test_a_first_step_that_is_broken_off_while_it_compiles_has_written_nothing(monkeypatch):
    """Whatever was compiled before: a small tensor's kernel is there, a large one's is not."""

    def compiled(form, small, device):
        if not small:
            raise KeyboardInterrupt

    monkeypatch.setattr(units, "compiled", compiled)
    weights = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(200, 200))]
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer = AdamW(weights, lr=0.1, execution="compiled")
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert not any(p.any() for p in weights)
    assert not any(state[key].any() for state in optimizer.state.values() for key in ("step", "exp_avg", "exp_avg_sq"))


def refused(method: Any, dimension: int) -> str:
    """What is said of a matrix that is sharded along a dimension; nothing where it may be."""
    optimizer = method([nn.Parameter(torch.zeros(4, 3))])
    (group,) = optimizer.param_groups
    sharded: Any = SimpleNamespace(placements=(Shard(dimension),))
    try:
        check_shards(sharded, "w", optimizer.chain_of(group).for_shape(torch.Size((4, 3))), group)
    except ValueError as error:
        return str(error)
    return ""


def kept(shape: Any) -> Any:
    """An optimizer with a memory of that shape."""
    rule = Rule("kept", lambda x, s, c: (x, {}), slots=(Slot("kept", shape=shape),))
    return lambda params: Optimizer(params, chain(rule, rules.descend()))


def test_shards_that_hold_no_whole_rows_or_memories_a_row_are_refused():
    for method in (AdamP, SCALE):  # sums over rows, and over columns
        assert "w is sharded along dimension 1, but the method needs whole rows" in refused(method, 1)
        assert not refused(method, 0)
    assert not refused(CAdamW, 1) and not refused(kept("column"), 0)
    assert "w is sharded, and the method keeps a number a row of it" in refused(kept("row"), 0)
    assert "w is sharded, and the method keeps memories of shapes of their own" in refused(kept(lambda _: (1,)), 0)


def test_every_parameter_takes_part_in_the_verdict_on_a_first_step(monkeypatch):
    """Ranks list the same parameters, whichever of them have a gradient."""
    seen = []
    monkeypatch.setattr(intake, "found_anywhere", lambda params, here: (seen.append((params, here)), ([], True))[1])
    with_gradient, without = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with_gradient.grad = torch.zeros(2)
    assert not intake.is_request_for_state([{"params": [without, with_gradient], "lr": 0.0}])
    assert [[id(p) for p in params] for params, _ in seen] == [[id(without), id(with_gradient)]]
    assert seen[0][1] == [False, False]
