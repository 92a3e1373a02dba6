"""Auxiliary networks that are classifiers alone: greedy learning and decoupled greedy learning."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from polyak.local.auxiliary import Auxiliary, Classifier, GlobalPool, Site, channels


@dataclass(frozen=True)
class Greedy(Auxiliary):
    """A linear classifier on the mean over pixels (tokens): greedy supervised learning, "0c1f".

    The weakest of all; the baseline that shows what an auxiliary network is for.
    """

    def build(self, site: Site) -> Classifier:
        """See :class:`Auxiliary`."""
        return Classifier(nn.Sequential(GlobalPool(), nn.Linear(channels(site.x, site.block), site.num_outputs)))


@dataclass(frozen=True)
class DGL(Auxiliary):
    """The head of decoupled greedy learning (Belilovsky et al., arXiv:1901.08164), as MAN++ uses it.

    Adaptive mean pooling to 8 x 8, three times [1 x 1 convolution to ``feature_dim``, BN, ReLU], mean pooling, three
    times [linear to ``4 feature_dim``, BN, ReLU], linear. (N, T, C) and (N, C) are not pooled to 8 x 8; their 1 x 1
    convolutions act on each token.

    Args:
        feature_dim: width of the 1 x 1 convolutions, >= 1.

    Raises:
        ValueError: if ``feature_dim`` is below 1.
    """

    feature_dim: int = 128

    def __post_init__(self) -> None:
        if self.feature_dim < 1:
            raise ValueError(f"feature_dim must be at least 1, got {self.feature_dim!r}")

    def build(self, site: Site) -> Classifier:
        """See :class:`Auxiliary`."""
        width = self.feature_dim
        body: list[nn.Module] = [PoolTo8() if site.x.ndim == 4 else AsImage()]
        before = channels(site.x, site.block)
        for _ in range(3):
            body += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        body.append(GlobalPool())
        for _ in range(3):
            body += [nn.Linear(before, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU(inplace=True)]
            before = 4 * width
        return Classifier(nn.Sequential(*body, nn.Linear(before, site.num_outputs)))


class PoolTo8(nn.Module):
    """Adaptive mean pooling of (N, C, H, W) to 8 x 8, by plain pooling where that is the same and faster."""

    def forward(self, x: Tensor) -> Tensor:
        """To (N, C, 8, 8)."""
        height, width = x.shape[2:]
        if height % 8 or width % 8:
            return F.adaptive_avg_pool2d(x, 8)
        return x if height == width == 8 else F.avg_pool2d(x, (height // 8, width // 8))


class AsImage(nn.Module):
    """(N, T, C) to (N, C, T, 1), (N, C) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Give every token its pixel."""
        return x[:, :, None, None] if x.ndim == 2 else x.transpose(1, 2)[..., None]
