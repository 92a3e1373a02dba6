"""Small networks laid out as torchvision and timm lay theirs out, for where neither is installed."""

import torch
from torch import nn

from polyak.local.resnet import BasicBlock, shortcut


def mlp(width=6, hidden=3, norm=False):
    layers = []
    for _ in range(hidden):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def convnet(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5), nn.ReLU(), nn.Linear(5, 4),
    )  # fmt: skip


def plain():
    """Four convolutions, twice as wide after the second."""
    widths = [3, 4, 4, 8, 8]
    body = []
    for i in range(4):
        body += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if i == 1 else [])]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class VisionResNet(nn.Module):
    """torchvision's ResNet."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.layer2 = nn.Sequential(BasicBlock(4, 8, 2, shortcut(4, 8, 2)), BasicBlock(8, 8))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class TimmResNet(VisionResNet):
    def __init__(self):
        super().__init__()
        self.act1 = self.relu
        del self.relu, self.avgpool
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward_head(self, x):
        return self.fc(self.global_pool(x))

    def forward(self, x):
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.forward_head(self.layer2(self.layer1(x)))


class VisionVGG(nn.Module):
    """torchvision's VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(32, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class TimmVGG(VisionVGG):
    def __init__(self):
        super().__init__()
        del self.avgpool, self.classifier
        self.pre_logits = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward_head(self, x):
        return self.head(self.pre_logits(x))

    def forward(self, x):
        return self.forward_head(self.features(x))


class Attention(nn.Module):
    """A pre-norm transformer layer on (N, T, C)."""

    def __init__(self, width=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mlp = nn.Linear(width, 3 * width), nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.mlp(self.norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, 5, 8))
        self.dropout, self.ln = nn.Dropout(0.1), nn.LayerNorm(8)
        self.layers = nn.Sequential(*(Attention() for _ in range(3)))

    def forward(self, x):
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class VisionViT(nn.Module):
    """torchvision's VisionTransformer."""

    def __init__(self):
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.encoder, self.heads = VisionEncoder(), nn.Sequential(nn.Linear(8, 4))

    def _process_input(self, x):
        return self.conv_proj(x).flatten(2).transpose(1, 2)

    def forward(self, x):
        x = self._process_input(x)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


class TimmViT(nn.Module):
    """timm's VisionTransformer."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.patch_drop, self.norm_pre = nn.Identity(), nn.Identity()
        self.blocks = nn.Sequential(*(Attention() for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def _pos_embed(self, x):
        x = x.transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed

    def forward_head(self, x):
        return self.head(x[:, 0])

    def forward(self, x):
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.forward_head(self.norm(self.blocks(x)))


ALL = {
    "resnet": (VisionResNet, (3, 16, 16), 4),
    "timm resnet": (TimmResNet, (3, 16, 16), 4),
    "vgg": (VisionVGG, (3, 8, 8), 3),
    "timm vgg": (TimmVGG, (3, 8, 8), 3),
    "vit": (VisionViT, (3, 8, 8), 3),
    "timm vit": (TimmViT, (3, 8, 8), 3),
    "sequential": (convnet, (3, 8, 8), 3),
    "mlp": (mlp, (6,), 3),
}
