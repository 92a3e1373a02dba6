"""Trajectories and tables recorded from the authors' code: MAN on InfoPro, MAN++ on DGL, AugLocal's selection."""

import re

import pytest
import torch

from polyak.local import AugLocal, LocalNetwork, cifar_resnet
from tests.devices import DEVICES
from tests.reproduce import local
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector, names_in

VECTORS = {name: Vector(RECORDED, name) for name in names_in(RECORDED, *local.RULES)}
TABLES = [
    (name, key, widths, d, tau)
    for name, vector in VECTORS.items()
    if vector.rule == "auglocal"
    for key, widths, d, tau in local.tables(vector)
]
SMALLEST = min(len(widths) for _, _, widths, _, _ in TABLES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VECTORS)
def test_vector(name, device):
    state, words = check(VECTORS[name], EXECUTIONS[:1], device)
    assert state == "reproduced", words


@pytest.mark.parametrize(("name", "key", "widths", "d", "tau"), [row for row in TABLES if len(row[2]) == SMALLEST])
def test_auglocal_networks_are_those_of_the_table(name, key, widths, d, tau):
    """Of the smallest network that is recorded."""
    outputs = VECTORS[name].outputs
    depth = int(re.match(r"resnet(\d+)/", key)[1])
    recipe = AugLocal(d, tau)
    cuts = recipe.published_cuts(len(widths) - 1)
    network = LocalNetwork(cifar_resnet(depth), auxiliary=recipe, cuts=cuts, example=torch.rand(2, 3, 32, 32))
    assert len(network.auxiliaries) == len(outputs[f"{key}/depth"])
    for layer, aux in enumerate(network.auxiliaries):
        blocks = [m for m in aux.net if hasattr(m, "conv1")]
        chosen = [i for i in outputs[f"{key}/selected"][layer] if i >= 0]
        assert [b.conv1.out_channels for b in blocks] == [widths[i] for i in chosen]
        assert [b.conv1.stride[0] for b in blocks] == outputs[f"{key}/strides"][layer].tolist()[: len(chosen)]
        norm = any(isinstance(m, torch.nn.BatchNorm1d) for m in aux.net)
        assert norm == bool(outputs[f"{key}/batchnorm_before_classifier"][layer])
