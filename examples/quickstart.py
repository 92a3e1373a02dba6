"""Train a small network on scikit-learn's digits with a method picked by name."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import polyak

data = load_digits()
x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = polyak.optim.create("cadamw", model, lr=3e-3, weight_decay=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

for _ in range(200):
    batch = torch.randint(1297, (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
    scheduler.step()

accuracy = (model(x[1297:]).argmax(1) == y[1297:]).float().mean()
print(optimizer.explain())
print(f"held-out accuracy {accuracy:.1%}, {optimizer.state_bytes():,} bytes of state")
