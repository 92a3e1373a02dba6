"""InfoPro: a local loss that also asks the block to keep what is needed to rebuild its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyak.local.auxiliary import Auxiliary, AuxiliaryNet, Batch, GlobalPool, Site

Kind = Literal["0c1f", "1c2f", "2c2f"]
TEMPERATURE = 0.07


@dataclass(frozen=True)
class InfoPro(Auxiliary):
    r"""InfoPro (Wang et al., ICLR 2021, arXiv:2101.10832): a decoder beside the classifier.

    .. math:: \ell_j = w_x(r_j)\,\mathrm{BCE}(D_j(x_j), \text{image}) + w_y(r_j)\,\mathrm{CE}(A_j(x_j), y), \qquad
        w(r) = w_1 (1 - r) + w_2 r, \quad r_j = (j - 1)/(K - 2)

    with :math:`r = 0` for two blocks. The decoder resizes to the image (bilinear, corners aligned), then 3 x 3
    convolution to ``12 widen`` channels, BN, ReLU, 3 x 3 convolution, sigmoid; the binary cross entropy is the mean
    over pixels and channels. The sigmoid is part of the loss here, which float16 needs.

    Args:
        image_mean: what was subtracted from the images in [0, 1], one number a channel.
        image_std: by what they were divided then. Inputs must come out in [0, 1] again.
        ixx_1: :math:`w_x` of the first block.
        ixy_1: :math:`w_y` of the first block.
        ixx_2: :math:`w_x` of the last block that has an auxiliary network.
        ixy_2: :math:`w_y` of that block. The defaults are those published for ResNet-32. MAN's (5, 0.5, 0, 0) only
            work with its own ratio: with the correct one the last such block would get no gradient.
        classifier: ``"1c2f"``: 3 x 3 convolution to 64 channels (32 from 16) with stride 2 (1 from 64), BN, ReLU, mean
            pooling, linear to ``feature_dim``, ReLU, linear. ``"2c2f"`` has a second convolution, ``"0c1f"`` is mean
            pooling and linear.
        feature_dim: width between the linear layers, >= 1.
        widen: width of the decoder, >= 1.
        contrastive: the supervised contrastive loss (temperature 0.07) instead of the criterion.
        legacy_ratio: MAN's :math:`r`, the number of the *stage* of the next layer over :math:`K - 2`, which can exceed
            1 and make weights negative. Only for networks with stages. A number >= 3 is what to take for :math:`K`
            instead of the number of blocks: for "K = 16" the authors' table of ResNet-32 has 15 blocks, one for each
            layer, while their ratio divides by 16 - 2.

    Raises:
        ValueError: if an argument is out of range.
    """

    image_mean: tuple[float, ...] = (0.0,)
    image_std: tuple[float, ...] = (1.0,)
    ixx_1: float = 5.0
    ixy_1: float = 0.05
    ixx_2: float = 0.2
    ixy_2: float = 0.5
    classifier: Kind = "1c2f"
    feature_dim: int = 128
    widen: int = 1
    contrastive: bool = False
    legacy_ratio: bool | int = False

    def __post_init__(self) -> None:
        if len(self.image_mean) != len(self.image_std):
            raise ValueError(
                f"image_std must have {len(self.image_mean)} numbers as image_mean has, got {self.image_std!r}"
            )
        if not all(s > 0 for s in self.image_std):
            raise ValueError(f"image_std must be greater than 0, got {self.image_std!r}")
        if self.classifier not in get_args(Kind):
            raise ValueError(f"classifier must be one of {get_args(Kind)}, got {self.classifier!r}")
        if not isinstance(self.legacy_ratio, bool) and self.legacy_ratio < 3:
            raise ValueError(f"legacy_ratio must be True, False or at least 3, got {self.legacy_ratio!r}")
        for name in ("feature_dim", "widen"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")

    def build(self, site: Site) -> InfoProNet:
        """See :class:`Auxiliary`."""
        if site.x.ndim != 4 or site.inputs.ndim != 4:
            raise ValueError(
                f"InfoPro rebuilds images from (N, C, H, W), but the output of block {site.block} is "
                f"{tuple(site.x.shape)} and the input {tuple(site.inputs.shape)}"
            )
        if len(self.image_mean) not in (1, site.inputs.shape[1]):
            raise ValueError(
                f"image_mean must be 1 or {site.inputs.shape[1]} numbers for such images, got {self.image_mean!r}"
            )
        return InfoProNet(self, site, *self._weights(site))

    def _weights(self, site: Site) -> tuple[float, float]:
        """:math:`w_x, w_y` of a block."""
        r = 0.0
        if site.num_blocks > 2:
            r = (site.block - 1) / (site.num_blocks - 2)
            if self.legacy_ratio:
                if not site.layers.stages or site.cut == len(site.layers.stages):
                    raise ValueError(f"legacy_ratio needs the stage of the layer after block {site.block}: it has none")
                blocks = site.num_blocks if self.legacy_ratio is True else self.legacy_ratio
                r = site.layers.stages[site.cut] / (blocks - 2)
        wx, wy = self.ixx_1 * (1 - r) + self.ixx_2 * r, self.ixy_1 * (1 - r) + self.ixy_2 * r
        if wx == wy == 0:
            raise ValueError(f"ixx_1, ixy_1, ixx_2, ixy_2 give both losses of block {site.block} the weight 0")
        return wx, wy


class InfoProNet(AuxiliaryNet):
    """The auxiliary network of :class:`InfoPro` for one block.

    Attributes:
        decoder: features to the image before the sigmoid.
        classifier: features to logits, or to features if contrastive.
        image_weight: :math:`w_x`.
        label_weight: :math:`w_y`.
    """

    needs_inputs = True
    mean: Tensor
    std: Tensor

    def __init__(self, recipe: InfoPro, site: Site, image_weight: float, label_weight: float) -> None:
        super().__init__()
        width, size = site.x.shape[1], tuple(site.inputs.shape[2:])
        self.decoder = nn.Sequential(
            Resize(size),
            nn.Conv2d(width, 12 * recipe.widen, 3, padding=1),
            nn.BatchNorm2d(12 * recipe.widen),
            nn.ReLU(inplace=True),
            nn.Conv2d(12 * recipe.widen, site.inputs.shape[1], 3, padding=1),
        )
        outputs = recipe.feature_dim if recipe.contrastive else site.num_outputs
        self.classifier = _classifier(recipe.classifier, width, recipe.feature_dim, outputs)
        self.image_weight, self.label_weight = image_weight, label_weight
        self.contrastive = recipe.contrastive
        self.register_buffer(
            "mean", torch.tensor(recipe.image_mean, dtype=torch.float64).view(-1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(recipe.image_std, dtype=torch.float64).view(-1, 1, 1), persistent=False
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image before the sigmoid, and logits."""
        return self.decoder(x), self.classifier(x)

    def loss(self, said: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """See :class:`AuxiliaryNet`."""
        image, logits = said
        target = self._image(batch.inputs).clamp(0, 1).to(image.dtype)
        rebuilt = F.binary_cross_entropy_with_logits(image, target)
        if self.contrastive:
            labelled = supervised_contrastive(logits, batch.targets)
        else:
            labelled = batch.criterion(logits, batch.targets)
        return self.image_weight * rebuilt + self.label_weight * labelled

    def check(self, batch: Batch) -> None:
        """See :class:`AuxiliaryNet`."""
        low, high = (float(v) for v in self._image(batch.inputs).aminmax())
        slack = 1e-2 if batch.inputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if not (low >= -slack and high <= 1 + slack):
            raise ValueError(
                f"inputs must be images in [0, 1] after image_std and image_mean are undone, got [{low:.3g}, "
                f"{high:.3g}]; InfoPro rebuilds the image with a binary cross entropy"
            )

    def _image(self, inputs: Tensor) -> Tensor:
        return inputs.detach() * self.std + self.mean


class Resize(nn.Module):
    """Bilinear resizing of (N, C, H, W), corners aligned; nothing where the size is right already."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """To (N, C, *size)."""
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=True)


def _classifier(kind: Kind, width: int, feature_dim: int, outputs: int) -> nn.Sequential:
    if kind == "0c1f":
        return nn.Sequential(GlobalPool(), nn.Linear(width, outputs))
    out = 32 if width == 16 else 64
    body = _conv(width, out, 1 if width == 64 else 2)
    if kind == "2c2f":
        body += _conv(out, out, 1)
    return nn.Sequential(
        *body, GlobalPool(), nn.Linear(out, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, outputs)
    )


def _conv(width: int, out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    r"""Supervised contrastive loss (Khosla et al., arXiv:2004.11362) of one view.

    .. math:: -\frac{1}{N}\sum_{i \in I} \frac{1}{|P_i|} \sum_{p \in P_i}
        \log \frac{e^{z_i \cdot z_p / T}}{\sum_{a \ne i} e^{z_i \cdot z_a / T}}

    :math:`z` are the features at length 1, :math:`P_i` the others with the label of :math:`i`, :math:`I` the samples
    that have such others. The mean is over all :math:`N` samples, as in the code of InfoPro and MAN: one without others
    counts as 0.

    Args:
        features: (N, F).
        labels: (N,) integers.
        temperature: :math:`T` > 0.

    Raises:
        ValueError: if ``temperature`` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature!r}")
    z = F.normalize(features.float() if features.dtype in (torch.float16, torch.bfloat16) else features, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = (z @ z.T / temperature).masked_fill(own, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == labels) & ~own
    return -(log_p.masked_fill(~positive, 0.0).sum(1) / positive.sum(1).clamp(min=1)).mean()
