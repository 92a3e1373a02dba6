"""Details of the auxiliary networks that no vector covers."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from polyak.local import (
    DGL,
    MAN,
    AugLocal,
    Auxiliary,
    AuxiliaryNet,
    Greedy,
    InfoPro,
    LocalNetwork,
    cifar_resnet,
    local_backward,
    supervised_contrastive,
)
from polyak.local.auglocal import auxiliary_depth, rebuilt
from polyak.local.heads import PoolTo8
from polyak.local.infopro import Resize
from tests.local import kinds


def test_supervised_contrastive_by_hand():
    z = torch.randn(5, 3, dtype=torch.float64)
    labels = [0, 1, 0, 1, 2]
    unit = [[v / math.sqrt(sum(x * x for x in row)) for v in row] for row in z.tolist()]
    total = 0.0
    for i in range(5):
        sims = {a: sum(p * q for p, q in zip(unit[i], unit[a], strict=True)) / 0.07 for a in range(5) if a != i}
        positives = [a for a in sims if labels[a] == labels[i]]
        if positives:
            log_sum = math.log(sum(math.exp(v) for v in sims.values()))
            total -= sum(sims[p] - log_sum for p in positives) / len(positives)
    found = supervised_contrastive(z, torch.tensor(labels))
    assert found.item() == pytest.approx(total / 5, rel=1e-12)  # the one without a partner counts as 0


def test_supervised_contrastive_without_pairs_is_zero():
    z = torch.randn(3, 2, requires_grad=True)
    loss = supervised_contrastive(z, torch.arange(3))
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="temperature must be greater than 0, got 0"):
        supervised_contrastive(z, torch.arange(3), 0.0)


def test_infopro_weights_run_from_the_first_block_to_the_last():
    recipe = InfoPro(ixx_1=4, ixy_1=1, ixx_2=1, ixy_2=7)
    network = LocalNetwork(cifar_resnet(20), 5, recipe, example=torch.rand(2, 3, 8, 8))
    assert [n.image_weight for n in network.auxiliaries] == pytest.approx([4, 3, 2, 1])
    assert [n.label_weight for n in network.auxiliaries] == pytest.approx([1, 3, 5, 7])
    two = LocalNetwork(cifar_resnet(20), 2, InfoPro(), example=torch.rand(2, 3, 8, 8))
    assert (two.auxiliaries[0].image_weight, two.auxiliaries[0].label_weight) == (5.0, 0.05)


@pytest.mark.parametrize("kind", ["0c1f", "1c2f", "2c2f"])
@pytest.mark.parametrize("contrastive", [False, True])
def test_infopro_classifiers(kind, contrastive):
    recipe = InfoPro(classifier=kind, contrastive=contrastive, feature_dim=7)
    network = LocalNetwork(cifar_resnet(8, num_classes=4), 3, recipe, example=torch.rand(2, 3, 8, 8))
    for net, x in zip(network.auxiliaries, (torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)), strict=True):
        image, logits = net(x)
        assert image.shape == (2, 3, 8, 8)
        assert logits.shape == (2, 7 if contrastive else 4)
        convolutions = [m for m in net.classifier if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == int(kind[0])


def test_dgl_has_its_published_layers():
    net = LocalNetwork(cifar_resnet(8), 2, DGL(), example=torch.rand(2, 3, 32, 32)).auxiliaries[0]
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    width = net.net[1].in_channels
    assert shapes == [(128, width, 1, 1), *[(128, 128, 1, 1)] * 2, (512, 128), *[(512, 512)] * 2, (10, 512)]


@pytest.mark.parametrize("kind", ["resnet", "vgg", "vit", "mlp"])
def test_auglocal_builds_every_kind(kind):
    model, shape = {
        "resnet": (kinds.VisionResNet(), (3, 16, 16)),
        "vgg": (kinds.plain(), (3, 8, 8)),
        "vit": (kinds.VisionViT(), (3, 8, 8)),
        "mlp": (kinds.mlp(hidden=4), (6,)),
    }[kind]
    network = LocalNetwork(model, 2, AugLocal(1), example=torch.rand(2, *shape))
    mine = {p.data_ptr() for p in network.auxiliaries.parameters()}
    assert not mine & {p.data_ptr() for p in network.model.parameters()}


def test_auglocal_asks_for_what_it_cannot_build():
    class Strange(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.conv = nn.Conv2d(a, b, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

    model = nn.Sequential(*(Strange(3, 3) for _ in range(4)), nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ValueError, match=r"a Strange cannot be built anew for 3 -> 3 channels and stride 1; pass"):
        LocalNetwork(model, 2, AugLocal(1), example=torch.rand(2, 3, 4, 4))
    recipe = AugLocal(1, block=lambda layer, a, b, stride: Strange(a, b))
    assert isinstance(LocalNetwork(model, 2, recipe, example=torch.rand(2, 3, 4, 4)).auxiliaries[0].net[0], Strange)


def test_rebuilt_convolution_pools_before_it():
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    made = rebuilt(layer, 4, 8, 2)
    assert [type(m).__name__ for m in made] == ["MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU"]
    assert made(torch.rand(2, 4, 8, 8)).shape == (2, 8, 4, 4)


def test_depth_without_decay_is_constant():
    assert {auxiliary_depth(layer, 20, 4, 0.0) for layer in range(20)} == {4}
    assert auxiliary_depth(0, 20, 4, 1.0) == 4 and auxiliary_depth(19, 20, 4, 1.0) == 1


def test_greedy_is_pooling_and_one_linear_map():
    network = LocalNetwork(cifar_resnet(8), 3, Greedy(), example=torch.rand(2, 3, 8, 8))
    x = torch.rand(2, 16, 8, 8)
    net = network.auxiliaries[0]
    torch.testing.assert_close(net(x), x.mean((2, 3)) @ net.net[1].weight.T + net.net[1].bias)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (16, 24), (4, 4), (10, 12)])
def test_pooling_to_8_is_adaptive_pooling(size):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(PoolTo8()(x), nn.functional.adaptive_avg_pool2d(x, 8), rtol=1e-13, atol=0)


@dataclass(frozen=True)
class Predict(Auxiliary):
    """A recipe from outside of the library: the mean of the input is to be predicted."""

    def build(self, site):
        return PredictNet(site.x.shape[1])


class PredictNet(AuxiliaryNet):
    needs_inputs = True

    def __init__(self, width):
        super().__init__()
        self.linear, self.finished = nn.Linear(width, 1), 0

    def forward(self, x):
        return self.linear(x.mean((2, 3)))[:, 0]

    def loss(self, said, batch):
        return (said - batch.inputs.mean((1, 2, 3))).square().mean()

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("recipe", [Predict(), MAN(Predict())], ids=["alone", "in MAN"])
def test_recipes_from_outside(recipe):
    network = LocalNetwork(cifar_resnet(8), 3, recipe, example=torch.rand(2, 3, 8, 8))
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.003)
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(local_backward(network, x, y).losses[0].item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert network.auxiliaries[0].needs_inputs
    if isinstance(recipe, Predict):
        assert network.auxiliaries[0].finished == 30


def test_contrastive_infopro_trains():
    torch.manual_seed(0)
    network = LocalNetwork(cifar_resnet(8), 3, InfoPro(contrastive=True, feature_dim=8), example=torch.rand(2, 3, 8, 8))
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.05)
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(sum(v.item() for v in local_backward(network, x, y).losses))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_resizing_to_the_same_size_is_nothing():
    x = torch.rand(2, 3, 8, 8)
    assert Resize((8, 8))(x) is x
    torch.testing.assert_close(x, nn.functional.interpolate(x, (8, 8), mode="bilinear", align_corners=True))
    torch.testing.assert_close(Resize((15, 15))(x)[..., ::2, ::2], x)


def test_man_runs_the_hooks_of_its_head():
    torch.manual_seed(0)
    model = cifar_resnet(14, num_classes=3)
    recipe = MAN(head=MAN(head=Greedy(), momentum=0.5), momentum=0.5)
    network = LocalNetwork(model, cuts=[1, 6], auxiliary=recipe, example=torch.randn(4, 3, 16, 16))
    inner = network.auxiliaries[0].head.average
    before = [p.detach().clone() for p in inner.parameters()]
    with torch.no_grad():
        for p in network.auxiliaries[0].head.source.parameters():
            p.add_(1.0)
    local_backward(network, torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
    for p, old in zip(inner.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old + 0.5)


def test_auglocal_behind_man_follows_the_layer_that_man_adds():
    model = cifar_resnet(14, num_classes=3)
    network = LocalNetwork(
        model, cuts=[1, 2, 3, 6], auxiliary=MAN(head=AugLocal(aux_depth=2)), example=torch.randn(4, 3, 16, 16)
    )
    outcome = local_backward(network, torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
    assert len(outcome.losses) == 3


def test_the_stage_s_ratio_can_be_that_of_another_number_of_blocks():
    """The authors' table for 16 has a block for each of ResNet-32's 15 layers."""
    x = torch.rand(2, 3, 8, 8)
    for k, blocks in ((True, 9), (10, 10)):
        head = InfoPro(ixx_1=5, ixy_1=0.5, ixx_2=0, ixy_2=0, legacy_ratio=k)
        network = LocalNetwork(cifar_resnet(20), 9, MAN(head), example=x)
        stages = [network.listed.stages[cut] for cut in network.cuts[:-1]]
        got = [net.head.image_weight for net in network.auxiliaries]
        assert got == pytest.approx([5 * (1 - stage / (blocks - 2)) for stage in stages])
    with pytest.raises(ValueError, match="legacy_ratio must be True, False or at least 3, got 2"):
        InfoPro(legacy_ratio=2)
