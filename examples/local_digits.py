"""Train a small residual network in gradient-isolated blocks, and see what that saves."""

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from polyak.local import MAN, ActivationMeter, Greedy, LocalTrainer, cifar_resnet, local_backward

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
y = torch.tensor(digits.target)[order]
train = DataLoader(TensorDataset(x[500:], y[500:]), batch_size=64, shuffle=True, drop_last=True)
test = DataLoader(TensorDataset(x[:500], y[:500]), batch_size=250)

model = cifar_resnet(32, num_classes=10, in_channels=1)
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
trainer = LocalTrainer(model, optimizer, num_blocks=5, auxiliary=MAN(head=Greedy()))
for epoch in trainer.fit(train, epochs=5):
    print(f"loss {epoch.loss:.3f}, of the blocks before {', '.join(f'{v:.3f}' for v in epoch.losses)}")
print(f"test accuracy {trainer.accuracy(test):.1%} with the plain network, cut after layers {trainer.network.cuts}")

with ActivationMeter([*trainer.network.parameters(), *trainer.network.buffers()]) as local:
    local_backward(trainer.network, x[:64], y[:64])
with ActivationMeter([*model.parameters(), *model.buffers()]) as whole:
    F.cross_entropy(model(x[:64]), y[:64]).backward()
print(f"activations: {local.peak / 1e6:.1f} MB in blocks, {whole.peak / 1e6:.1f} MB end to end")
