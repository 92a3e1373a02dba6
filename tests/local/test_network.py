"""Cutting a network: what is listed, what is kept, what is refused."""

import copy
import pickle
from itertools import combinations

import pytest
import torch
from torch import nn

from polyak.local import (
    DGL,
    MAN,
    ActivationMeter,
    AugLocal,
    Greedy,
    InfoPro,
    Layers,
    LocalNetwork,
    cifar_resnet,
    local_backward,
)
from polyak.local import layers as list_layers
from tests.local import kinds


def example(shape, n=4):
    return torch.rand(n, *shape)


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", kinds.ALL)
def test_layers_are_the_whole_network(kind):
    make, shape, count = kinds.ALL[kind]
    model = make().eval()
    listed = list_layers(model)
    assert len(listed.layers) == count
    x = example(shape)
    out = x
    for unit in (listed.stem, *listed.layers, listed.head):
        out = out if unit is None else unit(out)
    torch.testing.assert_close(out, model(x), rtol=0, atol=0)
    owned = {p for unit in (listed.stem, *listed.layers, listed.head) if unit is not None for p in unit.parameters()}
    assert owned == set(model.parameters())


@pytest.mark.parametrize("kind", kinds.ALL)
@pytest.mark.parametrize("auxiliary", [Greedy(), DGL(4), MAN(DGL(4))], ids=lambda a: type(a).__name__)
def test_every_kind_can_be_cut(kind, auxiliary):
    make, shape, count = kinds.ALL[kind]
    model = make()
    before = snapshot(model)
    network = LocalNetwork(model, count, Greedy(), example=example(shape))
    assert network.cuts == tuple(range(1, count + 1)) and len(network.auxiliaries) == count - 1
    network = LocalNetwork(model, 2, auxiliary, example=example(shape), cuts="uniform")
    assert network.model is model
    assert list(model.state_dict()) == list(make().state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(m.training for m in model.modules())


@pytest.mark.filterwarnings("ignore:one block")
def test_building_leaves_the_random_numbers_of_the_model_alone():
    model = kinds.VisionVGG()  # has dropout
    torch.manual_seed(3)
    LocalNetwork(model, cuts=[3], num_blocks=1, auxiliary=Greedy(), example=torch.zeros(2, 3, 8, 8))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


def test_cifar_resnets():
    for depth, count in ((20, 9), (32, 15), (110, 54)):
        model = cifar_resnet(depth)
        assert len(list_layers(model).layers) == count
    assert sum(p.numel() for p in cifar_resnet(32).parameters()) == 466_906
    assert cifar_resnet(20)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    for depth in (18, 2, 33):
        with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2"):
            cifar_resnet(depth)


def test_the_stem_may_be_a_block_of_its_own():
    model = cifar_resnet(8)
    network = LocalNetwork(model, 4, Greedy(), example=torch.rand(2, 3, 8, 8))
    assert network.cuts == (0, 1, 2, 3)
    assert set(network.blocks[0].parameters()) == {*model.conv1.parameters(), *model.bn1.parameters()}
    assert LocalNetwork(model, 3, Greedy(), example=torch.rand(2, 3, 8, 8)).cuts == (1, 2, 3)


def test_blocks_given_by_hand_are_the_model():
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 4))]
    with pytest.raises(ValueError, match="block 3 has no layer before the head whose weights could be averaged"):
        LocalNetwork(blocks, auxiliary=MAN(Greedy()), example=torch.rand(4, 6))
    network = LocalNetwork(blocks, auxiliary=Greedy(), example=torch.rand(4, 6))
    assert [list(b.parameters()) for b in network.blocks] == [list(b.parameters()) for b in blocks]
    assert list(network.model.state_dict()) == list(nn.Sequential(*blocks).state_dict())
    x = torch.rand(3, 6)
    assert torch.equal(network(x), nn.Sequential(*blocks)(x))


def test_own_listing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    odd = Odd()
    with pytest.raises(TypeError, match=r"layers of a Odd cannot be listed; pass layers=polyak\.local\.Layers"):
        LocalNetwork(odd, 2, example=torch.rand(2, 5))
    listed = Layers(list(odd.parts[:3]), head=odd.parts[3])
    assert LocalNetwork(odd, 3, Greedy(), layers=listed, example=torch.rand(2, 5)).num_blocks == 3
    odd.local_layers = lambda: listed
    assert list_layers(odd) is listed


def test_balanced_cuts_are_those_of_the_bytes_saved():
    model = cifar_resnet(20)
    x = torch.rand(2, 3, 32, 32)
    network = LocalNetwork(model, 3, Greedy(), example=x)
    uniform = LocalNetwork(model, 3, Greedy(), example=x, cuts="uniform")

    def dearest(net):
        peaks = []
        out = x
        for block in net.blocks:
            with ActivationMeter(model.parameters()) as meter:
                out = block(out)
            peaks.append(meter.peak)
            out = out.detach()
        return max(peaks)

    assert network.cuts[0] < uniform.cuts[0]
    assert dearest(network) < 0.8 * dearest(uniform)


@pytest.mark.parametrize(("auxiliary", "num_blocks"), [(MAN(), 2), (MAN(), 3), (DGL(), 2), (InfoPro(), 2)])
def test_balanced_cuts_have_the_least_peak_of_all_with_their_auxiliary_networks(auxiliary, num_blocks):
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)

    def peak(**cut):
        network = LocalNetwork(cifar_resnet(20), auxiliary=auxiliary, example=x, **cut)
        with ActivationMeter([*network.parameters(), *network.buffers()]) as meter:
            local_backward(network, x, y)
        return meter.peak

    best = min(peak(cuts=[*inner, 9]) for inner in combinations(range(1, 9), num_blocks - 1))
    assert peak(num_blocks=num_blocks) <= 1.01 * best


def test_balanced_cuts_are_made_where_the_recipe_can_build():
    recipe = MAN(Greedy(), extra=1)  # refused where the next layer changes the shape, after layers 3 and 6
    network = LocalNetwork(cifar_resnet(20), 3, recipe, example=torch.rand(2, 3, 32, 32))
    assert LocalNetwork(cifar_resnet(20), 3, Greedy(), example=torch.rand(2, 3, 32, 32)).cuts[0] == 2
    assert not {3, 6} & set(network.cuts)
    with pytest.raises(ValueError, match="extra must be 0 at block 3"):
        LocalNetwork(cifar_resnet(20), 9, recipe, example=torch.rand(2, 3, 32, 32))


def test_looking_for_cuts_leaves_random_numbers_alone():
    states = []
    for cut in ({"num_blocks": 2}, {"cuts": LocalNetwork(kinds.mlp(), 2, example=torch.rand(2, 6)).cuts}):
        torch.manual_seed(0)
        states.append(LocalNetwork(kinds.mlp(), **cut, example=torch.ones(2, 6)).auxiliaries.state_dict())
    for name, value in states[0].items():
        assert value is states[1][name] or torch.equal(value, states[1][name]), name


def test_cuts_do_not_depend_on_the_size_of_the_example():
    found = {n: LocalNetwork(cifar_resnet(20), 2, Greedy(), example=torch.rand(n, 3, 32, 32)).cuts for n in (2, 64)}
    assert found[2] == found[64]


class Crossing(nn.Module):
    """A U-net in small: the first layer's output skips to the last."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.avgpool(self.layer1(x) + x).flatten(1))


def refused(error, message, *arguments, **options):
    with pytest.raises(error, match=message):
        LocalNetwork(*arguments, **{"example": torch.rand(4, 6), **options})


def test_refusals():
    net = kinds.mlp()
    refused(ValueError, r"num_blocks must be in \[1, 3\] for 3 layers, got 4", net, 4)
    refused(ValueError, "num_blocks must be given", net)
    refused(ValueError, "cuts must be 'balanced', 'uniform' or a list", net, 2, cuts="equal")
    refused(ValueError, "num_blocks must be 2 for 2 cuts, got 3", net, 3, cuts=[1, 3])
    refused(ValueError, "last of cuts must be the number of layers, 3", net, cuts=[1, 2])
    refused(ValueError, "example must be a batch of at least 2", net, 2, example=torch.rand(1, 6))
    refused(TypeError, "auxiliary must be a recipe", net, 2, MAN)
    refused(TypeError, "nothing to cut", nn.Sequential(nn.Linear(6, 2)), 1)
    refused(ValueError, "must be left out where 2 blocks are given", [net, net], cuts="uniform")
    refused(ValueError, "blocks must be at least one module", [])


def test_listings_refuse():
    with pytest.raises(ValueError, match="layers must have at least one layer"):
        Layers([])
    with pytest.raises(ValueError, match="stages must be 1 numbers"):
        Layers([nn.Linear(1, 1)], stages=(1, 2))


def test_shapes_that_do_not_chain_name_the_block():
    blocks = [nn.Linear(6, 5), nn.Linear(6, 6), nn.Linear(6, 2)]
    refused(ValueError, r"block 2 \(Linear\) refuses the output of block 1 \(Linear\), of shape \(2, 5\)", blocks)
    refused(ValueError, r"layer 1 \(Sequential\) refuses the network's input", kinds.mlp(5), 2)


def test_crossing_skip_is_refused():
    message = "a skip connection crosses a gradient-isolated boundary"
    refused(ValueError, message, Crossing(), 2, Greedy(), example=torch.rand(2, 3, 8, 8))


def test_shared_layers_are_refused():
    shared = nn.Linear(6, 6)
    blocks = [shared, nn.Linear(6, 6), nn.Sequential(shared, nn.Linear(6, 2))]
    refused(ValueError, r"blocks 1 and 3 share the parameter 0\.weight", blocks, auxiliary=Greedy())


def test_in_place_on_the_output_of_a_block_is_refused():
    blocks = [nn.Linear(6, 6), nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Linear(6, 2))]
    refused(ValueError, "block 1 changes the block's output in place", blocks, auxiliary=MAN(Greedy()))
    LocalNetwork(blocks, auxiliary=Greedy(), example=torch.rand(2, 6))


def test_auxiliaries_that_do_not_fit():
    images = torch.rand(2, 3, 8, 8)
    refused(ValueError, r"InfoPro rebuilds images", kinds.mlp(), 2, InfoPro())
    options = {"auxiliary": MAN(extra=1), "cuts": [1, 2, 3], "example": images}
    refused(ValueError, "extra must be 0 at block 1: the next layer changes the shape", cifar_resnet(8), **options)
    refused(
        ValueError,
        "aux_depth must be below the number of layers less 2",
        cifar_resnet(8),
        2,
        AugLocal(2),
        example=images,
    )
    narrowing = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    refused(ValueError, "widths of the layers must not decrease", narrowing, 2, AugLocal(1))
    weights = InfoPro(ixx_1=5, ixy_1=0.5, ixx_2=0, ixy_2=0)
    refused(ValueError, "both losses of block 2 the weight 0", cifar_resnet(8), 3, weights, example=images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAN(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: MAN(momentum=-0.1), "momentum must be in"),
        (lambda: MAN(momentum=float("nan")), "momentum must be in"),
        (lambda: MAN(variant="layer"), "variant must be one of"),
        (lambda: MAN(init="zero"), "init must be one of"),
        (lambda: MAN(extra=-1), "extra must be at least 0"),
        (lambda: DGL(0), "feature_dim must be at least 1"),
        (lambda: AugLocal(0), "aux_depth must be at least 1"),
        (lambda: AugLocal(2, 1.5), r"pyramid_coeff must be in \[0, 1\]"),
        (lambda: AugLocal(3).published_cuts(4), "aux_depth must be below"),
        (lambda: InfoPro(image_mean=(0.5,), image_std=(1.0, 1.0)), "image_std must have 1 numbers"),
        (lambda: InfoPro(image_std=(0.0,)), "image_std must be greater than 0"),
        (lambda: InfoPro(classifier="3c"), "classifier must be one of"),
        (lambda: InfoPro(widen=0), "widen must be at least 1"),
    ],
)
def test_recipes_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_block_warns():
    with pytest.warns(UserWarning, match="plain backpropagation"):
        network = LocalNetwork(kinds.mlp(), 1, example=torch.rand(2, 6))
    assert len(network.auxiliaries) == 0


@pytest.mark.parametrize("way", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
@pytest.mark.parametrize("kind", ["resnet", "vit", "timm vit"])
def test_copies_stand_alone(way, kind):
    make, shape, _ = kinds.ALL[kind]
    network = LocalNetwork(make(), 2, MAN(Greedy()), example=example(shape))
    twin = way(network)
    mine, theirs = set(network.parameters()), set(twin.parameters())
    assert not mine & theirs
    assert {p for b in twin.blocks for p in b.parameters()} <= theirs
    assert set(twin.auxiliaries[0].source.parameters()) <= theirs
    x = example(shape)
    assert torch.equal(twin.eval()(x), network.eval()(x))


def test_moving_moves_everything():
    network = LocalNetwork(cifar_resnet(8), 2, MAN(Greedy()), example=torch.rand(2, 3, 8, 8)).double()
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert {p.dtype for b in network.blocks for p in b.parameters()} == {torch.float64}


def test_loading_another_number_of_blocks_changes_nothing():
    def make(num_blocks):
        torch.manual_seed(num_blocks)
        example = torch.randn(4, 3, 16, 16)
        return LocalNetwork(cifar_resnet(14, num_classes=3), num_blocks, Greedy(), example=example, cuts="uniform")

    mine, other = make(3), make(2)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(ValueError, match="has the cuts"):
        mine.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    mine.load_state_dict(make(3).state_dict())


@pytest.mark.parametrize("load", ["strict", "lenient", "wrapped"])
def test_loading_other_cuts_changes_nothing(load):
    def make(seed, *cuts):
        torch.manual_seed(seed)
        return LocalNetwork(kinds.mlp(hidden=4), auxiliary=MAN(Greedy()), example=torch.rand(2, 6), cuts=cuts)

    mine, other = make(0, 1, 4), make(1, 2, 4)  # every tensor has the same name and shape
    before = copy.deepcopy(mine.state_dict())
    target = {"strict": mine, "lenient": mine, "wrapped": nn.ModuleDict({"module": mine})}[load]
    state = {f"module.{k}" if load == "wrapped" else k: v for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"the checkpoint has the cuts \[2, 4\], this network \[1, 4\]; pass cuts=\[2"):
        target.load_state_dict(state, strict=load == "strict")
    for name, value in mine.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name
    mine.load_state_dict(make(2, 1, 4).state_dict())
    assert mine.model.state_dict().keys() == kinds.mlp(hidden=4).state_dict().keys()
