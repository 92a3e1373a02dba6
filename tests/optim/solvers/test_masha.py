import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from polyak.optim.solvers import MASHA1, MASHA2, Contractive, Identity, Natural, RandK, TopK, Unbiased

WORKERS, N = 4, 3
A, B, C = (
    torch.randn(WORKERS, *shape, generator=torch.Generator().manual_seed(0)).double() for shape in ((N, N), (N,), (N,))
)


class Game:
    """min over x, max over y of the mean of x'A_i y + B_i x - C_i y + 0.5 |x|^2 - 0.5 |y|^2."""

    def __init__(self, make, *args, **options):
        self.x, self.y = (nn.Parameter(torch.full((N,), v).double()) for v in (1.0, -2.0))
        self.solver = make([{"params": [self.x]}, {"params": [self.y], "maximize": True}], *args, **options)
        self.losses = [lambda i=i: self.loss(i) for i in range(WORKERS)]

    def loss(self, i):
        x, y = self.x, self.y
        return x @ A[i] @ y + B[i] @ x - C[i] @ y + 0.5 * x @ x - 0.5 * y @ y

    def step(self, *more):
        return self.solver.step(self.losses, *more)

    @property
    def z(self):
        return torch.cat([self.x, self.y]).detach().clone()

    def memory(self, name):
        dim = int(name == "residual")
        return torch.cat([self.solver.state[p][name] for p in (self.x, self.y)], dim)


def operator(i, z):
    """The part of worker i, by hand."""
    x, y = z[:N], z[N:]
    return torch.cat([A[i] @ y + B[i] + x, -(A[i].T @ x - C[i] - y)])


def mean_operator(z):
    return torch.stack([operator(i, z) for i in range(WORKERS)]).mean(0)


def solution():
    eye, a = torch.eye(N).double(), A.mean(0)
    left = torch.cat([torch.cat([eye, a], 1), torch.cat([-a.T, eye], 1)])
    return torch.linalg.solve(left, -torch.cat([B.mean(0), C.mean(0)]))


class Threshold(Unbiased, Contractive):
    """The same for all draws: what is large travels as it is; ratio 4."""

    def compress(self, u, generator):
        return torch.where(u.abs() >= u.abs().mean() / 2, u, 0.0)

    def ratio(self, entries):
        return 4.0

    def sent(self, entries):
        return entries / 2

    def verify(self, entries):
        """It is biased, and stands for an unbiased one whose draws are known."""


@pytest.mark.parametrize("make", [MASHA1, MASHA2])
@pytest.mark.parametrize("server", [Identity(), Threshold()])
def test_it_is_its_equations(make, server):
    lr, tau, compress = 0.1, 0.6, lambda u: Threshold().compress(u, None)
    game = Game(make, Threshold(), lr, tau, server_compressor=server, seed=3)
    down = compress if isinstance(server, Threshold) else lambda u: u
    z = w = game.z
    f, e, own = mean_operator(w), torch.zeros(2 * N).double(), [torch.zeros(2 * N).double()] * WORKERS
    refreshed = 0
    for _ in range(12):
        zh = tau * z + (1 - tau) * w - lr * f
        differences = [operator(i, zh) - operator(i, w) for i in range(WORKERS)]
        if make is MASHA1:
            z = zh - lr * down(sum(map(compress, differences)) / WORKERS)
        else:
            wanted = [lr * d + r for d, r in zip(differences, own, strict=True)]
            own = [u - compress(u) for u in wanted]
            total = sum(map(compress, wanted)) / WORKERS + e
            e = total - down(total)
            z = zh - down(total)
        game.step()
        torch.testing.assert_close(game.z, z, rtol=1e-10, atol=1e-12)
        count = game.solver.param_groups[0]["refreshes"]
        if count > refreshed:  # which steps these are is the coin's to say
            w, f, refreshed = z, mean_operator(z), count
        torch.testing.assert_close(game.memory("reference"), w, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(game.memory("operator"), f, rtol=1e-10, atol=1e-12)
    assert 0 < refreshed < 12
    if make is MASHA2:
        torch.testing.assert_close(game.memory("residual"), torch.stack(own), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(game.memory("server_residual"), e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "compressor", "options"),
    [
        (MASHA1, RandK(2), {}),
        (MASHA1, Natural(), {"tau": 0.5}),
        (MASHA1, RandK(2), {"server_compressor": RandK(4)}),
        (MASHA1, RandK(1), {"per_tensor": True}),
        (MASHA2, TopK(2), {}),
        (MASHA2, TopK(2), {"server_compressor": TopK(3)}),
        (MASHA2, TopK(1), {"per_tensor": True}),
    ],
)
def test_it_reaches_the_solution_exactly(make, compressor, options):
    game = Game(make, compressor, lr=0.15, **options)
    start = float((game.z - solution()).norm())
    for _ in range(150):
        game.step()
    assert float((game.z - solution()).norm()) < 1e-4 * start


def test_plain_compression_does_not():
    """What the reference point is for: without it the compressed step keeps its noise."""
    z, g = torch.cat([torch.ones(N), -2 * torch.ones(N)]).double(), torch.Generator().manual_seed(0)
    start = float((z - solution()).norm())
    for _ in range(150):
        zh = z - 0.1 * sum(RandK(2)(operator(i, z), g) for i in range(WORKERS)) / WORKERS
        z = z - 0.1 * sum(RandK(2)(operator(i, zh), g) for i in range(WORKERS)) / WORKERS
    assert float((z - solution()).norm()) > 1e-3 * start


def test_prox_keeps_a_constraint_and_finds_its_solution():
    game = Game(MASHA1, RandK(3), 0.1, prox=lambda x, lr: x.clamp(-0.1, 0.1))
    for _ in range(150):
        game.step()
    z, step = game.z, 0.1
    assert z.abs().max() <= 0.1
    torch.testing.assert_close((z - step * mean_operator(z)).clamp(-0.1, 0.1), z, rtol=0, atol=1e-5)


def test_prox_gets_the_rate_of_its_group():
    seen = []
    x, y = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [x], "lr": 0.25}, {"params": [y]}]
    solver = MASHA1(groups, RandK(1), 0.5, prox=lambda p, lr: seen.append(lr) or p)
    solver.step([lambda: (x * y).sum()])
    assert seen == [0.25, 0.5, 0.25, 0.5]


def test_batches_are_seen_twice_and_the_whole_at_refreshes():
    game, calls = Game(MASHA1, RandK(2), tau=0.5), {"batch": 0, "full": 0}

    def counted(name, closure):
        def call():
            calls[name] += 1
            return closure()

        return call

    some, full = ([counted(name, one) for one in game.losses[:n]] for name, n in (("batch", 2), ("full", WORKERS)))
    for _ in range(10):
        game.solver.step(some, full)
    refreshes = game.solver.param_groups[0]["refreshes"]
    assert calls == {"batch": 10 * 2 * 2, "full": WORKERS * (1 + refreshes)}
    assert game.solver.sent == 10 * 2 + 2 * N * (1 + refreshes)


def test_the_default_tau_balances_what_is_exchanged():
    assert Game(MASHA1, RandK(2)).solver.param_groups[0]["tau"] == pytest.approx(1 - 2 / 6)
    assert Game(MASHA2, TopK(1), per_tensor=True).solver.param_groups[1]["tau"] == pytest.approx(1 - 1 / 3)
    assert Game(MASHA1, Natural()).solver.param_groups[0]["tau"] == pytest.approx(23 / 32)
    with pytest.raises(ValueError, match="MASHA1: tau must be given where a compressor sends 1 of what it gets"):
        Game(MASHA1, Identity())


def test_the_loss_and_the_average_are_those_of_the_half_steps():
    game, halves = Game(MASHA2, TopK(2), 0.1, average=True), []
    for _ in range(4):
        z, state = game.z, game.solver.state
        w = game.memory("reference") if state else z
        tau = game.solver.param_groups[0]["tau"]
        halves.append(tau * z + (1 - tau) * w - 0.1 * mean_operator(w))
        value = game.step()
        now = game.z
        for p, v in zip((game.x, game.y), halves[-1].split(N), strict=True):
            p.data.copy_(v)
        torch.testing.assert_close(value, torch.stack([one() for one in game.losses]).mean().detach())
        for p, v in zip((game.x, game.y), now.split(N), strict=True):
            p.data.copy_(v)
    torch.testing.assert_close(game.memory("average"), torch.stack(halves).mean(0))
    assert "average" not in Game(MASHA2, TopK(2)).solver.state


MAKES = [(MASHA1, RandK(2)), (MASHA2, TopK(2))]


@pytest.mark.parametrize(("make", "compressor"), MAKES)
def test_resume_bit_for_bit(make, compressor):
    whole, first, second = (Game(make, compressor, 0.1, seed=7, average=True) for _ in range(3))
    for _ in range(9):
        whole.step()
    for _ in range(4):
        first.step()
    file = io.BytesIO()
    torch.save([first.solver.state_dict(), first.z], file)
    file.seek(0)
    state, z = torch.load(file, weights_only=True)
    second.solver.load_state_dict(state)
    for p, value in zip((second.x, second.y), z.split(N), strict=True):
        p.data.copy_(value)
    for _ in range(5):
        second.step()
    assert torch.equal(second.z, whole.z)
    names = ["reference", "operator", "average", *(["residual", "server_residual"] if make is MASHA2 else [])]
    assert all(torch.equal(second.memory(name), whole.memory(name)) for name in names)
    assert set(whole.solver.state[whole.x]) == set(names)


def test_seeds_decide_all_and_the_global_generator_nothing():
    def run(seed):
        game = Game(MASHA1, RandK(1), 0.1, seed=seed)
        for _ in range(6):
            game.step()
        return game.z

    before = torch.get_rng_state()
    one = run(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(run(1), one)
    assert not torch.equal(run(2), one)


def test_copies_and_pickles_keep_the_compressors():
    game = Game(MASHA1, RandK(2), server_compressor=RandK(3), prox=None)
    game.step()
    for other in (copy.deepcopy(game.solver), pickle.loads(pickle.dumps(game.solver))):
        assert (other.compressor.k, other.server_compressor.k) == (2, 3)
        assert other.sent == game.solver.sent


def test_schedulers_drive_the_rate():
    game = Game(MASHA2, TopK(2), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(game.solver, 1, 0.5)
    game.step()
    schedule.step()
    assert [group["lr"] for group in game.solver.param_groups] == [0.05, 0.05]
    game.step()


class Flipped(Contractive):
    """Breaks its contract from the second call on."""

    calls = 0

    def compress(self, u, generator):
        self.calls += 1
        return u if self.calls < 2 else -u

    def ratio(self, entries):
        return 2.0

    def sent(self, entries):
        return entries / 2


class Biased(Unbiased):
    def compress(self, u, generator):
        return u / 2

    def ratio(self, entries):
        return 2.0

    def sent(self, entries):
        return entries / 2


def test_compressors_of_the_wrong_kind():
    for make, bad, words in (
        (MASHA1, TopK(2), "compressor must be Unbiased, got TopK; what is biased, as Top-k is, needs MASHA2"),
        (MASHA2, RandK(2), "compressor must be Contractive, got RandK; unbiased ones"),
        (MASHA1, "rand", "compressor must be Unbiased, got str"),
    ):
        with pytest.raises(TypeError, match=f"{make.__name__}: {words}"):
            Game(make, bad)
    with pytest.raises(TypeError, match="MASHA2: server_compressor must be Contractive, got RandK"):
        Game(MASHA2, TopK(2), server_compressor=RandK(2))
    with pytest.raises(TypeError, match="MASHA2 takes no prox: its error feedback needs h = 0"):
        Game(MASHA2, TopK(2), prox=lambda x, lr: x)
    with pytest.raises(TypeError, match="MASHA1 needs compressor"):
        Game(MASHA1)
    with pytest.raises(ValueError, match="MASHA1: Biased says that it is unbiased and is not"):
        Game(MASHA1, Biased())
    with pytest.raises(ValueError, match=r"MASHA2: TopK: k must be in \[1, 6\]"):
        Game(MASHA2, TopK(7))
    with pytest.raises(ValueError, match=r"MASHA1: RandK: k must be in \[1, 3\]"):
        Game(MASHA1, RandK(4), per_tensor=True)


def held(game):
    return copy.deepcopy((game.solver.state_dict(), game.x, game.y))


def same(a, b):
    (one, *ps), (two, *qs) = a, b
    return (
        all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))
        and one["param_groups"] == two["param_groups"]
        and one["state"].keys() == two["state"].keys()
        and all(torch.equal(v, two["state"][i][k]) for i, s in one["state"].items() for k, v in s.items())
    )


def bad_steps(game):
    """Losses, full, and what is said of them."""
    good, x = game.losses, game.x
    return [
        ([], None, ValueError, "losses must be one closure or more, got none"),
        (good, [], ValueError, "full must be one closure or more"),
        ([good[0], 1.0, *good[2:]], None, TypeError, r"losses\[1\] must be a closure, got float"),
        ([*good[:3], lambda: 1.0], None, TypeError, r"(full|losses)\[3\] must return a tensor, got float"),
        ([lambda: x, *good[1:]], None, ValueError, r"\[0\] must return a loss, one number with its graph"),
        ([lambda: x.sum().detach(), *good[1:]], good, ValueError, r"losses\[0\] must return a loss"),
        (
            [*good[:2], lambda: x.sum() * math.nan, good[3]],
            good,
            RuntimeError,
            r"gradient of losses\[2\] is not finite",
        ),
        ([*good[:3], lambda: 1 / 0], good, ZeroDivisionError, "division"),
    ]


@pytest.mark.parametrize("case", range(8))
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("make", "compressor"), MAKES)
def test_a_refused_step_changes_nothing(make, compressor, steps, case):
    game = Game(make, compressor, 0.1)
    for _ in range(steps):
        game.step()
    losses, full, kind, words = bad_steps(game)[case]
    before = held(game)
    with pytest.raises(kind, match=words):
        game.solver.step(losses, full)
    assert same(held(game), before)


def test_a_refresh_that_fails_changes_nothing():
    game = Game(MASHA1, RandK(2), 0.1, tau=1e-9)  # refreshes at every step
    game.step()
    before = held(game)
    with pytest.raises(RuntimeError, match=r"gradient of full\[0\] is not finite"):
        game.solver.step(game.losses, [lambda: game.x.sum() * math.inf])
    assert same(held(game), before)


def test_a_contract_broken_on_the_way_changes_nothing():
    game = Game(MASHA2, Flipped(), 0.1)
    before = held(game)
    with pytest.raises(RuntimeError, match="Flipped breaks its contract"):
        game.step()
    assert same(held(game), before)


@pytest.mark.parametrize("bad", [lambda x, lr: None, lambda x, lr: x[:1], lambda x, lr: x * math.nan])
def test_a_bad_prox(bad):
    game = Game(MASHA1, RandK(2), prox=bad)
    before = held(game)
    with pytest.raises((ValueError, RuntimeError), match="prox"):
        game.step()
    assert same(held(game), before)


def test_another_number_of_workers():
    game = Game(MASHA2, TopK(2))
    game.step()
    before = held(game)
    with pytest.raises(ValueError, match="MASHA2 keeps residuals of 4 workers, got 3 losses"):
        game.solver.step(game.losses[:3])
    assert same(held(game), before)
    other = Game(MASHA1, RandK(2))
    other.step()
    other.solver.step(other.losses[:3], other.losses)


@pytest.mark.parametrize(("make", "compressor"), MAKES)
@pytest.mark.parametrize(
    ("option", "bad", "kind"),
    [
        *(("tau", x, ValueError) for x in (0.0, 1.0, -0.1, 1.5, math.nan)),
        *(("lr", x, ValueError) for x in (-0.1, math.inf, math.nan)),
        ("seed", -1, ValueError),
        ("seed", 0.5, TypeError),
        ("average", 1.5, ValueError),
        ("per_tensor", "yes", ValueError),
    ],
)
def test_arguments_out_of_range(make, compressor, option, bad, kind):
    with pytest.raises(kind, match=f"{make.__name__}: {option}"):
        Game(make, compressor, **{option: bad})


def test_groups():
    x, y, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), False)
    for groups, words in (
        ([{"params": [x], "lr": -1.0}], "lr must be"),
        ([{"params": [x]}, {"params": [y], "tau": 0.5}], "tau must be the same in all groups"),
        ([{"params": [x, frozen]}], "require a gradient"),
    ):
        with pytest.raises(ValueError, match=words):
            MASHA1(groups, RandK(1))
    solver = MASHA1([x], RandK(1))
    solver.step([lambda: x.square().sum()])
    with pytest.raises(ValueError, match="takes no more parameters after its first step"):
        solver.add_param_group({"params": [y]})
    with pytest.raises(AttributeError, match=r"optimizer\.param_groups"):
        _ = solver.tau


@pytest.mark.parametrize("copied", [False, True])
def test_a_group_that_comes_later_counts_for_the_default_of_tau(copied):
    x, y = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(6))
    together = MASHA1([{"params": [x]}, {"params": [y], "maximize": True}], RandK(2))
    solver = MASHA1([x], RandK(2))
    if copied:
        solver, x = copy.deepcopy((solver, x))
    before = solver.param_groups[0]["tau"]
    solver.add_param_group({"params": [y], "maximize": True})
    taus = [group["tau"] for group in solver.param_groups]
    assert taus == [group["tau"] for group in together.param_groups] and taus[0] != before
    solver.step([lambda: x.sum() * y.sum()])
    given = MASHA1([x], RandK(2), tau=0.3)
    given.add_param_group({"params": [y]})
    assert [group["tau"] for group in given.param_groups] == [0.3, 0.3]


def test_a_later_group_that_the_compressor_does_not_fit_is_refused():
    solver = MASHA1([nn.Parameter(torch.ones(6))], RandK(5), per_tensor=True)
    solver.add_param_group({"params": [nn.Parameter(torch.ones(6))]})
    tau = solver.param_groups[0]["tau"]

    class Small(RandK):
        def check_size(self, entries):
            if entries > 6:
                raise ValueError(f"Small takes at most 6, got {entries}")

    solver.__dict__["compressor"] = Small(5)
    with pytest.raises(ValueError, match="MASHA1: Small takes at most 6, got 7"):
        solver.add_param_group({"params": [nn.Parameter(torch.ones(7))]})
    assert len(solver.param_groups) == 2 and solver.param_groups[0]["tau"] == tau


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_shapes_mix(dtype):
    x, y = nn.Parameter(torch.ones(2, 3, dtype=dtype)), nn.Parameter(torch.ones((), dtype=torch.float64))
    for make, compressor in ((MASHA1, RandK(3)), (MASHA2, TopK(3))):
        solver = make([x, y], compressor, 0.01)
        for _ in range(3):
            solver.step([lambda: x.float().square().sum() + y.square(), lambda: x.float().sum() * y.float()])
        assert all(v.dtype == p.dtype for p in (x, y) for v in solver.state[p].values())
        assert x.isfinite().all()


@pytest.mark.parametrize("make", [MASHA1, MASHA2])
def test_what_they_say_of_themselves(make):
    assert make.equation
    assert make.paper.arxiv == "2110.03313"
    assert "prox" not in MASHA2.__doc__.split("Args:")[1].split("Raises:")[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s["param_groups"].pop(), "has 1 groups, this optimizer has 2"),
        (lambda s: s["param_groups"][1].pop("tau"), r"group 1 of the state_dict lacks \['tau'\]"),
        (
            lambda s: s["param_groups"][1]["params"].append(7),
            "group 1 of the state_dict has 2 parameters, here it has 1",
        ),
        (lambda s: s["param_groups"][0].update(lr=-1.0), r"lr must be in \[0, inf\), got -1.0"),
        (lambda s: s["state"][0].pop("reference"), "parameter 0 must have .* in the state_dict, it has"),
        (lambda s: s["state"][1].update(operator=torch.ones(2)), r"operator of parameter 1 has shape \(2,\)"),
        (lambda s: s["state"][1].update(residual=torch.ones(2, N)), r"residual of parameter 1 has shape \(2, 3\)"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(spoil, words):
    game = Game(MASHA2, TopK(2))
    game.step()
    state, before = copy.deepcopy(game.solver.state_dict()), held(game)
    spoil(state)
    with pytest.raises(ValueError, match=f"MASHA2: .*{words}") as found:
        game.solver.load_state_dict(state)
    assert "\n" not in str(found.value) and same(before, held(game))
    other = Game(MASHA1, Threshold())
    with pytest.raises(ValueError, match="MASHA1: parameter 0 must have"):
        other.solver.load_state_dict(game.solver.state_dict())
