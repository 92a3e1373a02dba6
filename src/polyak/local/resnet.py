"""The residual networks for 32 x 32 images of He et al. (arXiv:1512.03385), which local learning is published on."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, laid out and named as torchvision's block of that name.

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: 1, or 2 to halve the image.
        downsample: what the shortcut does where the shape changes; ``None`` for nothing.
    """

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x)) + shortcut))


def shortcut(inplanes: int, planes: int, stride: int) -> nn.Module | None:
    """A 1 x 1 convolution with normalization where the shape changes, and nothing where it does not."""
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


class CifarResNet(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, mean pooling and a linear classifier; see :func:`cifar_resnet`."""

    def __init__(self, per_stage: tuple[int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, per_stage[0], 1)
        self.layer2 = _stage(16, 32, per_stage[1], 2)
        self.layer3 = _stage(32, 64, per_stage[2], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20, 32, 44, 56, 110, ...: a stem and :math:`(depth - 2) / 2` blocks in three equal stages.

    Where the shape changes the shortcut is a 1 x 1 convolution with batch normalization, as in the networks that local
    learning is published on; He et al. pad with zeros.

    Args:
        depth: 6 n + 2 with n >= 1.
        num_classes: outputs of the classifier, >= 1.
        in_channels: channels of the images, >= 1.

    Raises:
        ValueError: if ``depth`` is not of that form.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6 n + 2 with n >= 1, as 20, 32 or 110, got {depth!r}")
    return CifarResNet((blocks, blocks, blocks), num_classes, in_channels)


def _stage(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inplanes, planes, stride, shortcut(inplanes, planes, stride))
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))
