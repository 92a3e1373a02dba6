import pytest
import torch
from torch import nn

import polyak.optim
from polyak.optim.solvers import SAMGS, CAGrad, PCGrad, multitask_backward
from tests.reproduce import shapes
from tests.reproduce.run import check
from tests.reproduce.vector import RECORDED, Vector, names_in


class Sum(nn.Module):
    """An aggregator as torchjd's are: a module called with the matrix."""

    def forward(self, matrix):
        self.seen = matrix
        return matrix.sum(0)


class Net(nn.Module):
    def __init__(self, tasks=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(tasks))

    def losses(self, x):
        features = self.trunk(x)
        return [(head(features) ** 2).mean() * (i + 1) for i, head in enumerate(self.heads)]


def made(seed=0, tasks=3):
    torch.manual_seed(seed)
    return Net(tasks).double(), torch.randn(8, 5).double()


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", names_in(RECORDED, *shapes.RULES))
def test_vector(name):
    state, words = check(Vector(RECORDED, name), ["eager"])
    assert state == "reproduced", words


def test_the_sum_is_what_autograd_gives_and_is_added_as_it_does():
    net, x = made()
    twin, _ = made()
    for _ in range(2):
        multitask_backward(net.losses(x), Sum(), net.trunk.parameters(), net.heads.parameters())
        sum(twin.losses(x)).backward()
        for name, g in gradients(net).items():
            torch.testing.assert_close(g, twin.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


def test_rows_are_the_gradients_of_the_tasks_in_their_order():
    net, x = made()
    aggregator = Sum()
    multitask_backward(net.losses(x), aggregator, net.trunk.parameters())
    for i, row in enumerate(aggregator.seen):
        found = torch.autograd.grad(net.losses(x)[i], list(net.trunk.parameters()))
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in found]), rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in net.heads.parameters())


@pytest.mark.parametrize("aggregator", [SAMGS(0.9), PCGrad(), CAGrad(), Sum(), lambda g: g[0]])
@pytest.mark.parametrize("method", ["adamw", "sgd", "muon"])
def test_any_optimizer_steps_what_any_aggregator_left(aggregator, method):
    net, x = made()
    optimizer = polyak.optim.create(method, net, lr=1e-2)
    start = sum(net.losses(x)).item()
    for _ in range(30):
        optimizer.zero_grad()
        multitask_backward(net.losses(x), aggregator, net.trunk.parameters(), net.heads.parameters())
        optimizer.step()
    assert sum(net.losses(x)).item() < start


def test_unused_and_frozen_parameters_are_left_alone():
    net, x = made()
    unused, frozen = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double(), requires_grad=False)
    shared = [unused, *net.trunk.parameters(), frozen]
    aggregator = SAMGS(0.9)
    multitask_backward(net.losses(x), aggregator, shared, [nn.Parameter(torch.ones(1))])
    assert unused.grad is None
    assert frozen.grad is None
    alone = SAMGS(0.9)
    twin, _ = made()
    multitask_backward(twin.losses(x), alone, twin.trunk.parameters())
    for p, q in zip(net.trunk.parameters(), twin.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_a_task_without_a_path_has_zeros():
    net, x = made()
    apart = nn.Parameter(torch.ones(3).double())
    aggregator = Sum()
    losses = [*net.losses(x)[:2], (apart**2).sum()]
    multitask_backward(losses, aggregator, net.trunk.parameters(), [apart])
    assert not aggregator.seen[2].any()
    assert aggregator.seen[:2].any(1).all()
    assert torch.equal(apart.grad, torch.full((3,), 2.0).double())


def test_losses_may_share_nothing_or_be_one_tensor():
    net, x = made()
    aggregator = Sum()
    multitask_backward(torch.stack(net.losses(x)), aggregator, net.trunk.parameters())
    want = aggregator.seen
    multitask_backward([net.losses(x)[i].reshape(1) for i in range(3)], aggregator, net.trunk.parameters())
    torch.testing.assert_close(aggregator.seen, want, rtol=1e-12, atol=1e-14)


def test_gradients_have_the_dtype_and_layout_of_their_parameter():
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    out = conv(torch.randn(2, 2, 5, 5)) * scale.float()[:, None, None]
    shared = [*conv.parameters(), scale]
    multitask_backward([out.mean(), out.square().mean()], PCGrad(), shared)
    for p in shared:
        assert p.grad.dtype == p.dtype
        assert p.grad.stride() == p.stride()
        assert p.grad.untyped_storage().nbytes() == p.nbytes  # and not a view of the whole


def test_sparse_gradients_become_dense():
    table = nn.Embedding(5, 3, sparse=True)
    rows = table(torch.tensor([0, 2, 2]))
    multitask_backward([rows.sum(), rows.square().sum()], Sum(), table.parameters())
    assert table.weight.grad.layout is torch.strided
    assert not table.weight.grad[1].any()


def bad_losses(net, x):
    good = net.losses(x)
    first = next(net.trunk.parameters())
    return {
        "none": ([], ValueError, "losses must be one or more"),
        "number": ([good[0], 1.0], TypeError, r"losses\[1\] must be a tensor, got float"),
        "vector": ([good[0], torch.stack(good)], ValueError, r"losses\[1\] must be a single number, got shape \(3,\)"),
        "detached": ([good[0].detach(), good[1]], ValueError, r"losses\[0\] does not require a gradient"),
        "nan": ([good[0], good[1] * float("nan")], ValueError, r"losses\[1\] is not finite"),
        "gradient": ([good[0], (first - first.detach()).abs().sqrt().sum()], ValueError, r"losses\[1\] is not finite"),
    }


@pytest.mark.parametrize("case", ["none", "number", "vector", "detached", "nan", "gradient"])
def test_bad_losses_change_nothing(case):
    net, x = made()
    losses, kind, words = bad_losses(net, x)[case]
    aggregator = SAMGS()
    with pytest.raises(kind, match=words):
        multitask_backward(losses, aggregator, net.trunk.parameters(), net.heads.parameters())
    assert all(g is None for g in gradients(net).values())
    assert aggregator.state_dict()["step"] == 0


def test_one_loss_warns_and_is_an_ordinary_backward():
    net, x = made(tasks=1)
    twin, _ = made(tasks=1)
    with pytest.warns(UserWarning, match="one task"):
        multitask_backward(net.losses(x), SAMGS(), net.trunk.parameters(), net.heads.parameters())
    twin.losses(x)[0].backward()
    for name, g in gradients(net).items():
        torch.testing.assert_close(g, twin.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


def test_bad_parameters():
    net, x = made()
    ps = list(net.trunk.parameters())
    for shared, heads, kind, words in (
        ([], [], ValueError, "at least one parameter"),
        ([nn.Parameter(torch.ones(1), requires_grad=False)], [], ValueError, "at least one parameter"),
        (net.trunk, [], TypeError, r"shared\[0\] must be a parameter, got Linear"),
        ([ps[0], ps[0]], [], ValueError, r"shared\[1\] is listed twice"),
        (ps, [ps[1]], ValueError, r"heads\[0\] is listed twice"),
        ([ps[0] * 2], [], ValueError, r"shared\[0\] must be a leaf"),
    ):
        with pytest.raises(kind, match=words):
            multitask_backward(net.losses(x), Sum(), shared, heads)


@pytest.mark.parametrize(
    ("aggregator", "kind", "words"),
    [
        ("sum", TypeError, "aggregator must be a callable of a matrix, got 'sum'"),
        (lambda g: None, TypeError, "must return a tensor, got NoneType"),
        (lambda g: g, ValueError, r"must return a vector \(64,\) of a matrix \(3, 64\), got \(3, 64\)"),
        (lambda g: g.sum(0) * float("nan"), ValueError, "returned a gradient that is not finite"),
    ],
)
def test_bad_aggregators_change_nothing(aggregator, kind, words):
    net, x = made()
    with pytest.raises(kind, match=words):
        multitask_backward(net.losses(x), aggregator, net.trunk.parameters(), net.heads.parameters())
    assert all(g is None for g in gradients(net).values())


def test_a_gradient_of_a_head_that_is_not_finite():
    net, x = made()
    scale = nn.Parameter(torch.zeros(1).double())
    losses = net.losses(x)
    with pytest.raises(ValueError, match=r"by heads\[0\] is not finite"):
        multitask_backward([losses[0], losses[1] + scale.sqrt().sum()], Sum(), net.trunk.parameters(), [scale])
    assert all(g is None for g in gradients(net).values())
