"""Layers whose parameters are no ordinary weights, and networks whose forward changes their buffers."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from polyak.local import DGL, MAN, ActivationMeter, Greedy, LocalNetwork, local_backward
from polyak.local.man import copied, fresh
from polyak.local.trace import undisturbed


class Scaled(nn.Module):
    """As ConvNeXt's blocks: a convolution and a scale for each channel, which starts constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-3))

    def forward(self, x):
        return x + self.scale * self.conv(x)


def test_scales_are_copied_and_weights_drawn():
    layer = Scaled()
    made = fresh(layer)
    assert torch.equal(made.scale, layer.scale) and torch.equal(made.conv.bias, layer.conv.bias)
    assert not torch.equal(made.conv.weight, layer.conv.weight)
    narrow = nn.Linear(100, 1)
    assert not torch.equal(fresh(narrow).weight, narrow.weight)  # a map to one output is no vector


@pytest.mark.parametrize("computed", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_computed_weights_keep_what_they_are_computed_to_have(computed):
    layer = computed(nn.Linear(6, 6))
    made = fresh(layer)
    assert not torch.equal(made.weight, layer.weight)
    if computed is parametrizations.weight_norm:
        torch.testing.assert_close(made.weight.norm(dim=1), layer.weight.norm(dim=1))
    else:
        torch.testing.assert_close(made.weight @ made.weight.T, torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_computed_by_hooks_are_copied_too():
    blocks = [nn.utils.weight_norm(nn.Linear(6, 6)) for _ in range(3)]
    network = LocalNetwork(nn.Sequential(*blocks, nn.Linear(6, 4)), 3, MAN(Greedy()), example=torch.rand(4, 6))
    local_backward(network, torch.rand(4, 6), torch.arange(4))
    source, average = network.auxiliaries[0].source, network.auxiliaries[0].average
    assert torch.equal(average.weight_v, source.weight_v) and average.weight_v is not source.weight_v
    torch.testing.assert_close(fresh(blocks[0]).weight_g, blocks[0].weight_g)


class Adapted(nn.Module):
    """Whole numbers and a table that are not trained, and an adapter that is."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randint(-4, 4, (6, 6), dtype=torch.int8), requires_grad=False)
        self.table = nn.Parameter(torch.randn(6, 6), requires_grad=False)
        self.adapter = nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(x @ (self.base.float() + self.table) / 6 + self.adapter(x))


@pytest.mark.parametrize("variant", ["code", "paper", "trained", "average", "scale"])
def test_what_is_not_trained_in_a_layer_is_constant_in_its_likes(variant):
    layers = [Adapted() for _ in range(3)]
    recipe = MAN(Greedy(), momentum=0.5, variant=variant, init="fresh")
    network = LocalNetwork(nn.Sequential(*layers, nn.Linear(6, 4)), 3, recipe, example=torch.rand(4, 6))
    optimizer = torch.optim.SGD(network.trainable_parameters(), 0.1)
    net = network.auxiliaries[0]
    likes = [like for like in (net.trained, net.average) if like is not None]
    before = [like.adapter.weight.detach().clone() for like in likes]
    for _ in range(2):
        optimizer.zero_grad()
        local_backward(network, torch.rand(4, 6), torch.arange(4))
        optimizer.step()
    for like, past in zip(likes, before, strict=True):
        assert torch.equal(like.base, layers[1].base) and torch.equal(like.table, layers[1].table)
        assert not like.table.requires_grad and not torch.equal(like.adapter.weight, past)


def test_a_layer_that_is_frozen_as_a_whole_has_likes_that_train():
    layer = nn.Linear(3, 3).requires_grad_(False)
    assert all(p.requires_grad for like in (copied(layer), fresh(layer)) for p in like.parameters())
    assert not torch.equal(fresh(layer).weight, layer.weight)


def test_a_layer_with_a_function_over_its_forward_is_refused():
    layers = [nn.Linear(6, 6) for _ in range(3)]
    plain = layers[1].forward
    layers[1].forward = lambda x: plain(x)
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    with pytest.raises(ValueError, match="its forward is a function"):
        LocalNetwork(model, cuts=[1, 2, 3], auxiliary=MAN(Greedy()), example=torch.rand(4, 6))


class Tracking(nn.Module):
    """Assigns one buffer anew in each forward, and makes another in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("mask", None, persistent=False)

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        if self.mask is None:
            self.mask = torch.ones(len(x), 1)
            self.register_buffer("made", torch.ones(1), persistent=False)
        return self.linear(x)


def test_building_leaves_buffers_that_a_forward_replaces():
    layers = [Tracking() for _ in range(3)]
    means = [layer.mean for layer in layers]
    LocalNetwork(nn.Sequential(*layers, nn.Linear(6, 4)), 3, MAN(Greedy()), example=torch.rand(4, 6))
    for layer, mean in zip(layers, means, strict=True):
        assert layer.mean is mean and not mean.any() and layer.mask is None and not hasattr(layer, "made")
        assert layer._non_persistent_buffers_set == {"mask"}
    with undisturbed(layers[0], training=True):
        layers[0](torch.ones(4, 6))
        assert layers[0].mean.any() and layers[0].made.item() == 1
    assert layers[0].mean is means[0] and layers[0].mask is None


@pytest.mark.parametrize("frozen", ["last", "first", "both"])
def test_blocks_without_anything_to_train_are_passed(frozen):
    layers = [nn.Linear(6, 6) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    for i in {"last": (2, 3), "first": (0,), "both": (0, 2, 3)}[frozen]:
        model[i].requires_grad_(False)
    network = LocalNetwork(model, cuts=[1, 2, 3], auxiliary=Greedy(), example=torch.rand(4, 6))
    outcome = local_backward(network, torch.rand(4, 6), torch.arange(4))
    assert all(p.grad is not None for p in network.trainable_parameters())
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert outcome.loss.isfinite() and outcome.logits.shape == (4, 4)


def test_a_word_where_blocks_save_no_memory():
    """MAN's layers and DGL's head behind a narrow layer hold more than the whole network."""
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    x, y = torch.rand(4, 6), torch.arange(4)

    def peak(run, tensors):
        with ActivationMeter(tensors) as meter:
            run()
        return meter.peak

    whole = peak(lambda: nn.functional.cross_entropy(model(x), y).backward(), model.parameters())
    for cuts in ("balanced", "uniform", [1, 3]):
        with pytest.warns(UserWarning, match=r"save no memory: block 1 and its auxiliary network hold \d{3,}%"):
            network = LocalNetwork(model, None if isinstance(cuts, list) else 2, MAN(DGL(4)), cuts=cuts, example=x)
        assert peak(lambda n=network: local_backward(n, x, y), [*network.parameters(), *network.buffers()]) >= whole


def test_no_word_where_they_do(recwarn):
    wide = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 4))
    LocalNetwork(wide, 3, Greedy(), example=torch.rand(4, 64))
    assert not [w for w in recwarn if "save no memory" in str(w.message)]


class Wrapping(torch.Tensor):
    """Has no memory of its own, but a tensor inside."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def strip(x):
            return x.inner if isinstance(x, Wrapping) else x

        out = func(*map(strip, args), **(kwargs or {}))
        return Wrapping(out) if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default) else out


def test_tensors_that_wrap_others_are_counted_one_by_one():
    """By the address of their own memory, of which they have none, they would all be one."""
    wrapped = [Wrapping(torch.rand(100)) for _ in range(2)]
    x = torch.rand(100, requires_grad=True)
    with ActivationMeter() as meter:
        total = (x * wrapped[0]).sum() + (x * wrapped[1]).sum()
        assert meter.current == 800 and all(map(meter.holds, wrapped))
        total.backward()
    assert meter.current == 0
    with ActivationMeter(wrapped) as meter:
        total = (x * wrapped[0]).sum()
    assert meter.peak == 0
