"""Keep averages of the weights while training on noisy labels; choose their length after the run.

A constant learning rate and wrong labels make the weights wander; their average stands still, and is better.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from polyak.optim import SGD
from polyak.teachers import EMA, Power, reconstruct

torch.manual_seed(0)
torch.set_num_threads(1)  # the tensors here are small
digits = load_digits()
order = torch.randperm(len(digits.target))
x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
x_test, y_test, x, y = x[:500], y[:500], x[500:], y[500:]
y = torch.where(torch.rand(len(y)) < 0.2, torch.randint(0, 10, y.shape), y)  # a fifth of the labels is noise


def accuracy():
    with torch.no_grad():
        return (model(x_test).argmax(1) == y_test).float().mean().item()


model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = SGD(model.parameters(), lr=0.5)
ema = EMA(model, [Power(sigma_rel=0.05), Power(sigma_rel=0.10)]).attach(optimizer)  # moves by itself from here on
snapshots = []
for epoch in range(1, 21):
    for rows in torch.randperm(len(y)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    if epoch % 5 == 0:
        snapshots += [ema.snapshot(0), ema.snapshot(1)]  # torch.save them in a longer run
        with ema.swapped(which=1):
            averaged = accuracy()
        print(f"epoch {epoch:2}: weights {accuracy():.1%}, their average {averaged:.1%}")

print("averages of widths that nobody tracked, rebuilt after the run:")
for sigma_rel in (0.06, 0.10, 0.15, 0.20):
    model.load_state_dict(reconstruct(snapshots, sigma_rel))
    print(f"  sigma_rel {sigma_rel:.2f}: {accuracy():.1%}")
