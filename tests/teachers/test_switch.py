"""An average goes on where a run goes on under another method."""

import torch
from torch import nn

import polyak.optim
from polyak.teachers import EMA


def test_an_attached_average_goes_along_and_lets_go() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = polyak.optim.AdamW(model.parameters())
    ema = EMA(model, 0.9).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    step()
    step()
    optimizer = polyak.optim.switch(optimizer, "lion")
    step()
    step()
    assert ema.updates == 4
    ema.detach()
    step()
    assert ema.updates == 4
