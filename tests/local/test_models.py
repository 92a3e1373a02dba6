"""Models of torchvision and timm themselves, where they are installed; kinds.py has their layouts for elsewhere."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyak.local import DGL, MAN, Greedy, LocalNetwork, local_backward

IMAGES, LABELS = torch.rand(4, 3, 32, 32), torch.arange(4)


def torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    if name == "vit":
        return models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4)
    return getattr(models, name)(num_classes=4)


def timm(name: str, **options: object) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=4, **options)


# The model, its cuts, and how the names of the parameters of its first block begin.
MODELS = {
    "torchvision resnet18": (partial(torchvision, "resnet18"), (2, 4, 8), ("conv1", "bn1", "layer1")),
    "torchvision vgg11": (partial(torchvision, "vgg11"), (1, 4, 8), ("features.0",)),
    "torchvision vit": (
        partial(torchvision, "vit"),
        (1, 2, 3),
        ("class_token", "conv_proj", "encoder.pos_embedding", "encoder.layers.encoder_layer_0"),
    ),
    "timm resnet18": (partial(timm, "resnet18"), (2, 4, 8), ("conv1", "bn1", "layer1")),
    "timm vgg11": (partial(timm, "vgg11"), (1, 4, 8), ("features.0",)),
    "timm vit_tiny": (
        partial(timm, "vit_tiny_patch16_224", img_size=32),
        (1, 6, 12),
        ("cls_token", "pos_embed", "patch_embed", "blocks.0."),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_is_cut_trained_and_exported(kind):
    make, cuts, first = MODELS[kind]
    model = make()
    before = copy.deepcopy(model.state_dict())
    network = LocalNetwork(model, auxiliary=MAN(DGL(8)), cuts=cuts, example=IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    names = {p: name for name, p in model.named_parameters()}
    mine = {names[p] for p in network.blocks[0].parameters()}
    assert mine == {name for name in names.values() if name.startswith(first)}
    optimizer = torch.optim.SGD(network.trainable_parameters(), lr=0.01)
    outcome = local_backward(network, IMAGES, LABELS)
    optimizer.step()
    assert torch.isfinite(torch.stack([outcome.loss, *outcome.losses])).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(IMAGES), model.eval()(IMAGES))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:one block")
def test_one_block_has_the_gradients_of_backpropagation(kind):
    model = MODELS[kind][0]()
    twin = copy.deepcopy(model)
    network = LocalNetwork(model, 1, Greedy(), example=IMAGES)
    for act in (
        lambda: local_backward(network, IMAGES, LABELS),
        lambda: F.cross_entropy(twin(IMAGES), LABELS).backward(),
    ):
        torch.manual_seed(3)  # of dropout
        act()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )
