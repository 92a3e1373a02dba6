"""The loop that Lightning's runs are compared with."""

import torch
from torch import Tensor

from tests.optim.training import batch, build, net, weights

EPOCHS, BATCHES = 3, 8
POISON = 5  # the batch whose loss is infinite, where that is asked for


def by_hand(method: str, accumulate: int, clip: float, poison: int = -1) -> dict[str, Tensor]:
    """Gradients accumulated and clipped, the learning rate scheduled by step, and the step ``poison`` skipped."""
    model = net()
    optimizer = build(method, model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
    for index in range(EPOCHS * BATCHES):
        x, y = batch(index)
        loss = (model(x, index) - y).square().mean() / accumulate
        loss.backward()
        if (index + 1) % accumulate == 0:
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if index != poison:
                optimizer.step(loss=loss)
            schedule.step()
            optimizer.zero_grad()
    return weights(model)
