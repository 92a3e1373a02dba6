"""Trajectories and tables recorded from the authors' code: MAN on InfoPro, MAN++ on DGL, AugLocal's selection."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyak.local import DGL, MAN, AugLocal, InfoPro, LocalNetwork, cifar_resnet, local_backward
from polyak.local.auglocal import auxiliary_depth, selected_layers, strides
from polyak.local.resnet import CifarResNet
from tests.devices import DEVICES

VECTORS = Path(__file__).parents[1] / "vectors"
MEAN = tuple(v / 255 for v in (125.3, 123.0, 113.9))
STD = tuple(v / 255 for v in (63.0, 62.1, 66.7))
FEATURE_DIM = 12
HEADS = {
    "man": InfoPro(MEAN, STD, 5, 0.5, 5, 0.5, feature_dim=FEATURE_DIM, legacy_ratio=True),
    "manpp": DGL(FEATURE_DIM),
}


def load(name):
    with np.load(VECTORS / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}, json.loads(
            (VECTORS / f"{name}.json").read_text()
        )


def normalized(images):
    mean, std = (torch.tensor(v, dtype=torch.float64, device=images.device).view(-1, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def build(rule, vector):
    torch.set_default_dtype(torch.float64)
    try:
        model = CifarResNet((1, 1, 1), 5, 3)
        recipe = MAN(HEADS[rule], momentum=0.995, variant="scale" if rule == "manpp" else "code")
        cuts = [0, 1, 2, 3] if rule == "manpp" else [1, 2, 3]
        network = LocalNetwork(model, auxiliary=recipe, cuts=cuts, example=normalized(vector["in/t0/image01"]))
    finally:
        torch.set_default_dtype(torch.float32)
    named = dict(network.named_parameters())
    start = {ours(key.removeprefix("in/init/"), rule): v for key, v in vector.items() if key.startswith("in/init/")}
    assert start.keys() == named.keys()
    with torch.no_grad():
        for name, value in start.items():
            named[name].copy_(value)
    return network


def ours(name, rule):
    """Our name of an official parameter."""
    first = int(rule == "manpp")  # the stem's block comes first
    for official, index in (("LB.0", first), ("LB.1", first + 1), ("LB_first", 0)):
        name = name.replace(f"{official}.", f"auxiliaries.{index}.trained.")
    for official, index in (("EMA_Net.0", first), ("EMA_Net.1", first + 1), ("EMA_first", 0)):
        name = name.replace(f"{official}.", f"auxiliaries.{index}.average.")
    for official, index in (("ema_s_first", 0), ("ema_s.0", first), ("ema_s.1", first + 1)):
        name = f"auxiliaries.{index}.scale" if name == official else name
    for stage, index in ((0, 0), (2, first), (3, first + 1)):
        name = name.replace(f"decoder_{stage}_0.decoder.", f"auxiliaries.{index}.head.decoder.")
        part = "classifier" if rule == "man" else "net"
        name = name.replace(f"aux_classifier_{stage}_0.head.", f"auxiliaries.{index}.head.{part}.")
    parts = name.split(".")
    if "decoder" in parts:  # our Sequential begins with the resizing
        parts[-2] = str(int(parts[-2]) + 1)
    if rule == "man" and "classifier" in parts and int(parts[-2]) > 3:  # pooling and flattening are one item of ours
        parts[-2] = str(int(parts[-2]) - 1)
    if rule == "manpp" and "net" in parts:  # ours begins with pooling, and has one item for pooling and flattening
        index = int(parts[-2])
        parts[-2] = str(index + 1 if index < 9 else index)
    name = ".".join(parts)
    if name.startswith("auxiliaries."):
        return name
    return "model." + name.replace("fc64.", "fc.")


def watch(network, said):
    """Note the separate losses of the auxiliary networks."""
    for net in network.auxiliaries:
        net.head.register_forward_hook(lambda _, __, out: said.append(out))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rule", "rtol"), [("man", 1e-10), ("manpp", 1e-8)])
def test_trajectory(rule, rtol, device):
    # Batch normalization over four vectors, in DGL's head, amplifies rounding.
    vector, manifest = load(f"{rule}-tiny-resnet")
    network = build(rule, vector).to(device)
    optimizer = torch.optim.SGD(
        network.trainable_parameters(), lr=manifest["hyperparameters"]["lr"], momentum=0.9, nesterov=True,
        weight_decay=manifest["hyperparameters"]["weight_decay"],
    )  # fmt: skip
    first = int(rule == "manpp")
    said = []
    watch(network, said)

    def same(actual, key):
        torch.testing.assert_close(
            actual.detach().cpu(), vector[key], rtol=rtol, atol=1e-12, msg=lambda m: f"{key}: {m}"
        )

    for t in range(manifest["steps"]):
        image, label = vector[f"in/t{t}/image01"].to(device), vector[f"in/t{t}/label"].to(device)
        said.clear()
        optimizer.zero_grad()
        outcome = local_backward(network, normalized(image), label)
        stages = (0, 2, 3) if rule == "manpp" else (2, 3)
        for j, stage in enumerate(stages):
            if rule == "man":
                decoded, logits = said[j]
                same(F.binary_cross_entropy(decoded.sigmoid(), image), f"out/t{t}/loss/decoder_{stage}_0")
                same(F.cross_entropy(logits, label), f"out/t{t}/loss/aux_classifier_{stage}_0")
                both = 5 * vector[f"out/t{t}/loss/decoder_{stage}_0"]
                both = both + 0.5 * vector[f"out/t{t}/loss/aux_classifier_{stage}_0"]
                torch.testing.assert_close(outcome.losses[j].detach().cpu(), both, rtol=rtol, atol=0)
            else:
                same(outcome.losses[j], f"out/t{t}/loss/aux_classifier_{stage}_0")
        same(outcome.loss, f"out/t{t}/loss/last_ce")
        same(outcome.logits, f"out/t{t}/logits")
        averages = [net.average for net in network.auxiliaries]
        for i in (0, 1):
            average = averages[first + i]
            same(sum(p.square().sum() for p in average.parameters()), f"out/t{t}/ema{i}_sum_sq")
            same(average.conv1.weight.flatten()[:8], f"out/t{t}/ema{i}_conv1_head")
        optimizer.step()
        same(network.model.conv1.weight, f"out/t{t}/stem_conv_after_step")
        same(network.auxiliaries[first].trained.conv1.weight.flatten()[:8], f"out/t{t}/LB0_conv1_head_after_step")
        same(network.model.layer3[0].conv2.weight.flatten()[:8], f"out/t{t}/layer3_conv2_head_after_step")
        if rule == "manpp":
            same(averages[0].conv1.weight.flatten()[:8], f"out/t{t}/ema_first_conv1_head")
            scales = torch.stack([net.scale for net in network.auxiliaries])
            same(scales, f"out/t{t}/scales_after_step")


@pytest.mark.parametrize("net", ["resnet32", "resnet110"])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_auglocal_selection(net, d):
    vector, _ = load("auglocal-selection")
    widths = vector[f"{net}/widths"].tolist()
    key = f"{net}/d{d}/tau0.5"
    depths = vector[f"{key}/depth"].tolist()
    assert len(AugLocal(d).published_cuts(len(widths) - 1)) == len(depths) + 1
    for layer, depth in enumerate(depths):
        assert auxiliary_depth(layer, len(widths), d, 0.5) == depth
        selected = selected_layers(layer, len(widths), depth)
        assert selected == [i for i in vector[f"{key}/selected"][layer].tolist() if i >= 0]
        assert strides(layer, selected, widths) == vector[f"{key}/strides"][layer].tolist()[: len(selected)]


@pytest.mark.parametrize("d", [1, 3])
def test_auglocal_networks_are_those_of_the_table(d):
    vector, _ = load("auglocal-selection")
    key = f"resnet32/d{d}/tau0.5"
    network = LocalNetwork(
        cifar_resnet(32), auxiliary=AugLocal(d), cuts=AugLocal(d).published_cuts(15), example=torch.rand(2, 3, 32, 32)
    )
    for layer, aux in enumerate(network.auxiliaries):
        blocks = [m for m in aux.net if hasattr(m, "conv1")]
        chosen = [i for i in vector[f"{key}/selected"][layer].tolist() if i >= 0]
        assert [b.conv1.out_channels for b in blocks] == [vector["resnet32/widths"][i].item() for i in chosen]
        assert [b.conv1.stride[0] for b in blocks] == vector[f"{key}/strides"][layer].tolist()[: len(chosen)]
        norm = any(isinstance(m, torch.nn.BatchNorm1d) for m in aux.net)
        assert norm == bool(vector[f"{key}/batchnorm_before_classifier"][layer])
