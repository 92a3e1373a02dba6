import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim, export

from polyak.memory import (
    Bfloat16,
    Factored,
    Float32,
    Int8,
    codec,
    ema,
    kahan_add,
    pack_bits,
    round_stochastic,
    square_shape,
)

BLOCK = 256
seeds = st.integers(0, 2**62)
exponents = st.integers(-30, 15)
KEY = torch.tensor(2**40 + 17)
CODECS = [Float32(), Bfloat16(), Int8(True), Int8(False), Factored(True), Factored(False), Factored(True, 8)]
ROUNDED = [Bfloat16(), Int8(True), Int8(False)]


def numbers(seed, n, signed=True, exponent=0):
    """Magnitudes over several orders, as the moments of a network have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * torch.randn(n, generator=generator).exp() * 2.0**exponent
    return x if signed else x.square()


def signed(one):
    return getattr(one, "signed", True)


def step_around(one, x):
    """Distance of the two numbers between which a codec must choose."""
    if one.name == "bfloat16":
        return 2.0**-7 * x.abs() + 2.0**-133
    scale = x.view(-1, BLOCK).abs().amax(dim=1, keepdim=True).double()
    power, most = (4, 127) if one.signed else (8, 255)
    below = ((x.view(-1, BLOCK).abs() / scale) ** (1 / power) * most - 1e-3).floor().clamp(0)
    return (scale * (((below + 1.01) / most) ** power - (below / most) ** power)).view(-1)


@pytest.mark.parametrize("one", ROUNDED, ids=repr)
@given(seed=seeds, exponent=exponents)
@settings(max_examples=30)
def test_what_comes_back_is_a_step_away_at_most(one, seed, exponent):
    x = numbers(seed, 4096, signed(one), exponent)
    back = one.decode(one.encode(x, torch.tensor(seed)), x.numel())
    assert back.dtype == torch.float32
    assert ((back - x).abs() <= 1.001 * step_around(one, x)).all()


@pytest.mark.parametrize("one", CODECS, ids=repr)
def test_parts_are_as_announced(one):
    for n in (4096, 8960):
        stored = one.encode(numbers(0, n, signed(one)), KEY)
        announced = one.parts(n)
        assert [(tuple(part.shape), part.dtype) for part in stored] == list(announced.values())
        assert one.decode(stored, n).shape == (n,)
        assert one.decode(stored, n).dtype == torch.float32


@pytest.mark.parametrize("one", ROUNDED, ids=repr)
def test_the_mean_over_seeds_is_the_value(one):
    x = numbers(3, 4096, signed(one))
    smallest = 0 if signed(one) else 255.0**-8
    block_max = x.view(-1, BLOCK).abs().amax(dim=1, keepdim=True)
    inside = (x.view(-1, BLOCK).abs() >= smallest * block_max).view(-1)
    tries = 400
    backs = torch.stack([one.decode(one.encode(x, torch.tensor(i)), x.numel()).double() for i in range(tries)])
    deviation = (backs.mean(dim=0) - x)[inside] / (step_around(one, x)[inside] * 0.5 / tries**0.5)
    assert deviation.abs().max() < 6
    assert deviation.mean().abs() < 5 / inside.sum() ** 0.5


@pytest.mark.parametrize("one", ROUNDED, ids=repr)
def test_an_average_moves_by_less_than_a_step(one):
    n = 4096
    parts = one.encode(torch.ones(n), KEY)
    for step in range(200):
        value = ema(one.decode(parts, n), torch.full((n,), 0.5), 1e-3)
        value[::BLOCK] = 1.0  # holds the scale, so that all the others have to be rounded
        parts = one.encode(value, torch.tensor(step))
    free = torch.arange(n) % BLOCK != 0
    assert one.decode(parts, n)[free].mean().item() == pytest.approx(0.5 + 0.5 * 0.999**200, abs=1e-3)


@pytest.mark.parametrize("one", CODECS, ids=repr)
def test_zeros_stay_zero(one):
    n = 4096
    assert not one.decode(one.encode(torch.zeros(n), KEY), n).any()
    assert not one.decode([torch.zeros(shape, dtype=dtype) for shape, dtype in one.parts(n).values()], n).any()
    x = numbers(1, n, signed(one))
    x[::3] = 0
    if one.name != "factored":
        assert not one.decode(one.encode(x, KEY), n)[::3].any()


@given(seeds, exponents)
@settings(max_examples=30)
def test_second_moments_stay_positive(seed, exponent):
    x = numbers(seed, 4096, False, exponent)
    x[::5] *= 1e-20
    x = x.clamp(min=1e-38)
    back = Int8(False).decode(Int8(False).encode(x, torch.tensor(seed)), 4096)
    assert (back > 0).all()


def test_a_negative_second_moment_is_taken_as_zero():
    x = numbers(2, 4096)
    back = Int8(False).decode(Int8(False).encode(x, KEY), 4096)
    assert not back[x < 0].any()
    assert (back[x > 0] > 0).all()


@pytest.mark.parametrize("one", CODECS, ids=repr)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_does_not_become_finite(one, bad):
    if not signed(one) and bad < 0:
        return
    x = numbers(4, 4096, signed(one))
    x[700] = bad
    back = one.decode(one.encode(x, KEY), 4096)
    assert not back[700].isfinite()
    if one.name != "factored":  # there a row and a column are
        assert back[:512].isfinite().all()
        assert back[768:].isfinite().all()


@pytest.mark.parametrize("one", [Int8(True), Int8(False)], ids=repr)
def test_blocks_are_as_good_as_a_flat_array(one):
    x = numbers(6, 4096, signed(one))
    codes, scale = one.encode(x, KEY)
    square, same = one.encode(x.view(-1, BLOCK), KEY)
    assert torch.equal(square, codes.view(-1, BLOCK))
    assert torch.equal(same, scale)
    assert torch.equal(one.decode([square, scale], 4096).view(-1), one.decode([codes, scale], 4096))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_of_a_block_is_kept(sign):
    for one in (Int8(True), Int8(False)) if sign > 0 else (Int8(True),):
        x = numbers(5, 4096, signed(one)).abs() * sign
        back = one.decode(one.encode(x, KEY), 4096)
        at = x.view(-1, BLOCK).abs().argmax(dim=1, keepdim=True)
        torch.testing.assert_close(
            back.view(-1, BLOCK).gather(1, at), x.view(-1, BLOCK).gather(1, at), rtol=3e-7, atol=0
        )


@pytest.mark.parametrize("sign_bits", [1, 8])
@pytest.mark.parametrize("n", [12, 35, 4096])
def test_rank_one_comes_back_from_factors(sign_bits, n):
    rows, cols = square_shape(n)
    x = (torch.rand(rows, 1) * torch.rand(1, cols) * torch.randn(rows, cols).sign()).view(-1)
    one = Factored(True, sign_bits)
    torch.testing.assert_close(one.decode(one.encode(x, KEY), n), x, rtol=1e-5, atol=1e-7)


def test_what_fits():
    assert all(one.fits(n) for one in (Float32(), Bfloat16()) for n in (1, 7, 4096))
    assert [Int8().fits(n) for n in (256, 3840, 4096, 4097, 4352, 10**6 * 256)] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]
    assert [Factored().fits(n) for n in (0, 1, 7, 16, 36, 4093, 4096)] == [False] * 4 + [True, False, True]


def test_codecs_by_name():
    assert codec("float32") == Float32()
    assert codec("bfloat16", signed=False) == Bfloat16()
    assert (codec("int8"), codec("int8", signed=False)) == (Int8(True), Int8(False))
    assert codec("factored", signed=False) == Factored(False)
    assert len({*CODECS, *CODECS}) == len(CODECS)
    assert len({repr(one) for one in CODECS}) == len(CODECS)
    assert [codec(name).name for name in ("float32", "bfloat16", "int8", "factored")] == [
        "float32", "bfloat16", "int8", "factored",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="name must be one of 'float32', 'bfloat16', 'int8', 'factored', got 'int4'"):
        codec("int4")


class Pass(torch.nn.Module):
    """A memory's part of a step: read, average, write."""

    def __init__(self, one):
        super().__init__()
        self.one = one

    def forward(self, parts, signal, seed):
        value = self.one.decode(parts, signal.numel()).view(signal.shape) * 0.9 + 0.1 * signal
        return value, *self.one.encode(value, seed)


def example(one, n, flat=True):
    x, g = numbers(n, n, signed(one)), numbers(n + 1, n, signed(one))
    if not flat:
        g = g.view(square_shape(n))
    return list(one.encode(x, KEY)), g, KEY + n


def exported(one):
    """The pass as a graph in which the number of elements is open, and another number to try it with."""
    n, blocks, rows, cols = (Dim(name, min=2) for name in ("n", "blocks", "rows", "cols"))
    if one.name == "factored":
        signs = [] if not one.signed else [{0: Dim("bytes", min=2)}] if one.sign_bits == 1 else [{0: rows, 1: cols}]
        dims = [{0: rows}, {0: cols}, *signs], {0: rows, 1: cols}, None
    elif one.name == "int8":
        dims = [{0: BLOCK * blocks}, {0: blocks}], {0: BLOCK * blocks}, None
    else:
        dims = [{0: n}], {0: n}, None
    flat = one.name != "factored"
    graph = export(
        Pass(one),
        example(one, 8192, flat),
        dynamic_shapes=dims,
        prefer_deferred_runtime_asserts_over_guards=not flat,
    )
    return graph, example(one, 12 * 35 if not flat else 20 * BLOCK, flat)


@pytest.mark.parametrize("one", CODECS, ids=repr)
def test_a_graph_of_any_length_gives_the_same_bits(one):
    graph, inputs = exported(one)
    for got, expected in zip(graph.module()(*inputs), Pass(one)(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_packing_leaves_room_in_the_last_byte():
    one = Factored(True)
    parts = one.encode(numbers(0, 35), KEY)
    assert parts[2].shape == (5,)
    assert torch.equal(parts[2], pack_bits(numbers(0, 35) > 0))


class All(torch.nn.Module):
    """Every form that is promised to have the same bits compiled, in one graph, since compiling takes long."""

    def forward(self, half, codes, scale, positive, positive_scale, x, seed):
        one = Pass(Bfloat16())([half], x, seed)
        two = Pass(Int8(True))([codes, scale], x, seed)
        three = Pass(Int8(False))([positive, positive_scale], x.square(), seed)
        weight, left = kahan_add(half, half * 2.0**-9, x)
        return *one, *two, *three, weight, left, round_stochastic(x, torch.float16, seed)


@pytest.mark.slow
def test_a_compiled_pass_gives_the_same_bits(tmp_path):
    def inputs(blocks):
        x, g = (numbers(blocks + i, blocks * BLOCK).view(blocks, BLOCK) for i in range(2))
        x[::7] = 0
        x[3, 4] = math.inf
        return *Bfloat16().encode(x, KEY), *Int8(True).encode(x, KEY), *Int8(False).encode(x.square(), KEY), g, KEY

    blocks = {0: Dim("blocks", min=2)}
    graph = export(All(), inputs(32), dynamic_shapes=(blocks,) * 6 + (None,))
    package = torch._inductor.aoti_compile_and_package(graph, package_path=str(tmp_path / "all.pt2"))
    run = torch._inductor.aoti_load_package(package)
    for n in (16, 50):
        for got, expected in zip(run(*inputs(n)), All()(*inputs(n)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
