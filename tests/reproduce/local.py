"""Local learning: MAN's and MAN++'s training steps, and the auxiliary networks that AugLocal selects."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.local import DGL, MAN, Auxiliary, InfoPro, LocalNetwork, local_backward
from polyak.local.auglocal import auxiliary_depth, selected_layers, strides
from polyak.local.resnet import CifarResNet
from tests.reproduce.vector import Unknown, Vector, array

FIRST = "0_0"
"""What MAN++ calls the block of the stem."""


NARROWEST = 12
"""Channels of InfoPro's decoder where it is not widened."""


class Names:
    """The blocks of a recorded run, read from the names and shapes of its parameters."""

    def __init__(self, vector: Vector) -> None:
        self.plus = "MAN++" in vector.variant
        keys = [key for key in vector.inputs if key.startswith("in/init/")]
        self.start = {key.removeprefix("in/init/"): vector.input(key) for key in keys}
        self.per_stage = tuple(len(self._found(rf"layer{stage}\.(\d+)\.")) for stage in (1, 2, 3))
        self.fc = self._found(r"(fc\d*)\.weight")[0]
        # ("2", "0"): what comes after that block is the first of layer2
        self.places = sorted(self._found(r"aux_classifier_(\d+_\d+)\."), key=lambda p: [*map(int, p.split("_"))])

    def _found(self, pattern: str) -> list[str]:
        return list(dict.fromkeys(found[1] for name in self.start if (found := re.match(pattern, name))))

    @property
    def first(self) -> int:
        """How many auxiliary networks come before the first that has a number."""
        return int(self.places[0] == FIRST)

    def cuts(self) -> list[int]:
        """After how many residual blocks each block ends."""
        layers = [f"{stage}_{i}" for stage, count in enumerate(self.per_stage, 1) for i in range(count)]
        return [0 if place == FIRST else layers.index(place) for place in self.places] + [len(layers)]

    def shape(self, name: str) -> torch.Size:
        return self.start[name].shape

    def classifier(self) -> str:
        """The prefix of the first auxiliary classifier."""
        return f"aux_classifier_{self.places[0]}.head"

    def convolutions(self) -> int:
        """How many it has."""
        return sum(x.ndim == 4 and name.startswith(self.classifier()) for name, x in self.start.items())

    def ours(self, name: str) -> str:
        """Our name of an official parameter."""
        parts = name.split(".")
        if found := re.match(r"(decoder|aux_classifier)_(\d+_\d+)\.(decoder|head)\.(\d+)\.(.*)", name):
            kind, place, _, index, rest = found.groups()
            part, number = self._inside(kind, int(index))
            return f"auxiliaries.{self.places.index(place)}.head.{part}.{number}.{rest}"
        kinds = {"LB": "trained", "EMA_Net": "average", "ema_s": "scale"}
        firsts = {"LB_first": "trained", "EMA_first": "average", "ema_s_first": "scale"}
        if parts[0] in firsts:
            return ".".join(["auxiliaries.0", firsts[parts[0]], *parts[1:]])
        if parts[0] in kinds:
            return ".".join([f"auxiliaries.{self.first + int(parts[1])}", kinds[parts[0]], *parts[2:]])
        return "model." + ".".join(["fc" if parts[0] == self.fc else parts[0], *parts[1:]])

    def _inside(self, kind: str, index: int) -> tuple[str, int]:
        """Ours resize and pool inside, and pooling and flattening are one item."""
        pool = 3 * self.convolutions()
        if kind == "decoder":
            return "decoder", index + 1
        if self.plus:
            return "net", index + 1 if index < pool else index
        return "classifier", index - 1 if index > pool else index


def _head(vector: Vector, names: Names, mean: tuple[float, ...], std: tuple[float, ...]) -> Auxiliary:
    if names.plus:
        return DGL(names.shape(f"{names.classifier()}.0.weight")[0])
    linear = [x.shape[0] for name, x in names.start.items() if name.startswith(names.classifier()) and x.ndim == 2]
    decoder = names.shape(f"decoder_{names.places[0]}.decoder.0.weight")[0]
    weights = {name: vector.option(name) for name in ("ixx_1", "ixy_1", "ixx_2", "ixy_2")}
    kind: Any = f"{names.convolutions()}c{len(linear)}f"
    return InfoPro(
        mean, std, **weights, classifier=kind, feature_dim=linear[0], widen=decoder // NARROWEST, legacy_ratio=True
    )


class Images:
    """What was subtracted from the images and by what they were divided, as the manifest says in words."""

    def __init__(self, vector: Vector) -> None:
        mean, by, std, by_too = vector.said(r"mean \(([\d.,]+)\)/([\d.]+) and std \(([\d.,]+)\)/([\d.]+)")
        self.mean = tuple(float(value) / float(by) for value in mean.split(","))
        self.std = tuple(float(value) / float(by_too) for value in std.split(","))

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


def build(vector: Vector, names: Names, images: Images) -> LocalNetwork:
    """The network with the recorded start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(vector.dtype)
    try:
        classes, channels = names.shape(f"{names.fc}.weight")[0], names.shape("conv1.weight")[1]
        model = CifarResNet(names.per_stage, classes, channels)
        momentum = vector.option("ema_momentum")
        recipe = MAN(_head(vector, names, images.mean, images.std), momentum, "scale" if names.plus else "code")
        example = images(vector.input("in/t0/image01"))
        network = LocalNetwork(model, auxiliary=recipe, cuts=names.cuts(), example=example)
    finally:
        torch.set_default_dtype(before)
    start = {names.ours(name): value for name, value in names.start.items()}
    named = dict(network.named_parameters())
    if {n: p.shape for n, p in named.items()} != {n: x.shape for n, x in start.items()}:
        odd = sorted(
            n for n in {*named, *start} if n not in named or n not in start or named[n].shape != start[n].shape
        )
        raise Unknown(f"{vector.name} starts from other parameters than the network has: {odd}")
    with torch.no_grad():
        for name, value in start.items():
            named[name].copy_(value)
    return network


def man(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Losses, logits and weights of each training step."""
    vector.read_all("ema_momentum", "ixx_1", "ixy_1", "ixx_2", "ixy_2", "lr", "weight_decay")
    names, images = Names(vector), Images(vector)
    network = build(vector, names, images).to(device)
    momentum, nesterov = vector.said(r"SGD \(momentum ([\d.]+)(, nesterov)?, coupled weight decay")
    optimizer = torch.optim.SGD(
        network.trainable_parameters(), vector.option("lr"), momentum=float(momentum), nesterov=bool(nesterov),
        weight_decay=vector.option("weight_decay"),
    )  # fmt: skip
    said: list[Any] = []
    for net in network.auxiliaries:
        net.head.register_forward_hook(lambda _, __, out: said.append(out))
    found: dict[str, Any] = {}
    for t in vector.steps(r"in/t(\d+)/image01"):
        image, label = vector.input(f"in/t{t}/image01", device), vector.input(f"in/t{t}/label", device)
        said.clear()
        optimizer.zero_grad()
        outcome = local_backward(network, images(image), label)
        step = {"logits": outcome.logits, "loss/last_ce": outcome.loss}
        for place, out, loss in zip(names.places, said, outcome.losses, strict=False):
            step |= _losses(place, out, loss, image, label)
        step |= dict(_averages(vector, names, network, t))
        optimizer.step()
        step |= dict(_after_step(vector, names, network, t))
        found |= {f"out/t{t}/{name}": array(value).copy() for name, value in step.items()}
    return found


def _losses(place: str, out: Any, loss: Tensor, image: Tensor, label: Tensor) -> dict[str, Tensor]:
    if not isinstance(out, tuple):
        return {f"loss/aux_classifier_{place}": loss}
    decoded, logits = out
    return {
        f"loss/decoder_{place}": F.binary_cross_entropy(decoded.sigmoid(), image),
        f"loss/aux_classifier_{place}": F.cross_entropy(logits, label),
    }


def _averages(vector: Vector, names: Names, network: LocalNetwork, t: int) -> Iterator[tuple[str, Any]]:
    """The averages as the forward and backward passes left them."""
    for i, net in enumerate(network.auxiliaries):
        label = "ema_first" if i < names.first else f"ema{i - names.first}"
        assert net.average is not None
        yield f"{label}_sum_sq", sum(p.detach().square().sum() for p in net.average.parameters())
        yield from _beginning(vector, f"out/t{t}/", f"{label}_conv1_head", net.average.conv1)


def _after_step(vector: Vector, names: Names, network: LocalNetwork, t: int) -> Iterator[tuple[str, Any]]:
    yield "stem_conv_after_step", network.model.conv1.weight.detach().clone()
    if names.plus:
        yield "scales_after_step", torch.stack([net.scale.detach() for net in network.auxiliaries])
    modules: dict[str, nn.Module] = {f"LB{i}": net.trained for i, net in enumerate(network.auxiliaries[names.first :])}
    modules |= {f"layer{stage}": getattr(network.model, f"layer{stage}")[0] for stage in (1, 2, 3)}
    for label, module in modules.items():
        for conv in ("conv1", "conv2"):
            name = f"{label}_{conv}_head_after_step"
            yield from _beginning(vector, f"out/t{t}/", name, getattr(module, conv))


def _beginning(vector: Vector, prefix: str, name: str, conv: nn.Conv2d) -> Iterator[tuple[str, Tensor]]:
    """As many entries of a weight as are recorded."""
    if prefix + name in vector.outputs:
        yield name, conv.weight.detach().flatten()[: vector.outputs[prefix + name].size].clone()


def auglocal(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """Depth, layers and strides of each auxiliary network."""
    vector.read_all("d", "pyramid_coeff")
    found: dict[str, np.ndarray] = {}
    for key, widths, d, tau in tables(vector):
        layers = range(len(widths) - d - 1)
        depths = [auxiliary_depth(layer, len(widths), d, tau) for layer in layers]
        chosen = [selected_layers(layer, len(widths), depth) for layer, depth in zip(layers, depths, strict=True)]
        steps = [strides(layer, selected, widths) for layer, selected in zip(layers, chosen, strict=True)]
        found |= {
            f"{key}/depth": np.array(depths),
            f"{key}/selected": np.array([row + [-1] * (d - len(row)) for row in chosen]),
            f"{key}/strides": np.array([row + [-1] * (d - len(row)) for row in steps]),
            f"{key}/batchnorm_before_classifier": np.array([int(depth <= 1) for depth in depths]),
        }
    return found


def tables(vector: Vector) -> Iterator[tuple[str, list[int], int, float]]:
    """Key, widths, depth and coefficient of each table: those recorded, or all that the manifest names."""
    nets = [key.removesuffix("/widths") for key in vector.inputs if key.endswith("/widths")]
    recorded = (re.fullmatch(r"(.+)/d(\d+)/tau([^/]+)/depth", key) for key in vector.outputs)
    asked = [(found[0].removesuffix("/depth"), found[1], found[2], found[3]) for found in recorded if found]
    if not asked:
        pairs = [(d, tau) for d in vector.option("d") for tau in vector.option("pyramid_coeff")]
        asked = [(f"{net}/d{d}/tau{tau}", net, d, tau) for net in nets for d, tau in pairs]
    for key, net, d, tau in asked:
        yield key, vector.input(f"{net}/widths").tolist(), int(d), float(tau)


RULES = {"man": man, "auglocal": auglocal}
