"""AdamP and SGDP against an independent transcription of the paper, with an eps that is felt everywhere it stands."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyak.optim import SGDP, AdamP

SHAPES = ((6, 20), (4, 2, 3, 3), (5,))
EPS = 1e-3


def projected(w: np.ndarray, g: np.ndarray, u: np.ndarray, delta: float, eps: float) -> tuple[np.ndarray, bool]:
    """The direction without its radial part, row by row or as a whole, and whether the weight passed the test."""
    if w.ndim < 2:
        return u, False
    for rows in (w.shape[0], 1):
        a, b, c = (t.reshape(rows, -1) for t in (w, g, u))
        lengths = np.linalg.norm(a, axis=1)
        cosines = np.abs((a * b).sum(1)) / (np.maximum(np.linalg.norm(b, axis=1), eps) * np.maximum(lengths, eps))
        if cosines.max() < delta / np.sqrt(a.shape[1]):
            unit = a / (lengths[:, None] + eps)
            return (c - unit * (unit * c).sum(1, keepdims=True)).reshape(w.shape), True
    return u, False


def adamp(w: np.ndarray, gradients: list[np.ndarray], h: dict[str, Any]) -> np.ndarray:
    m, v, (b1, b2) = 0.0, 0.0, h["betas"]
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        read = b1 * m + (1 - b1) * g if h["nesterov"] else m
        u, found = projected(w, g, read / (np.sqrt(v / (1 - b2**t)) + h["eps"]), h["delta"], h["eps"])
        w = w * (1 - h["lr"] * h["weight_decay"] * (h["wd_ratio"] if found else 1.0)) - h["lr"] / (1 - b1**t) * u
    return w


def sgdp(w: np.ndarray, gradients: list[np.ndarray], h: dict[str, Any]) -> np.ndarray:
    b, mu = 0.0, h["momentum"]
    for g in gradients:
        b = mu * b + (1 - h["dampening"]) * g
        u, found = projected(w, g, g + mu * b if h["nesterov"] else b, h["delta"], h["eps"])
        if h["project_buffer"]:
            b = u
        decay = h["lr"] * h["weight_decay"] * (h["wd_ratio"] if found else 1.0) / (1 - mu)
        w = w * (1 - decay) - h["lr"] * u
    return w


COMMON = {"lr": 0.01, "weight_decay": 0.1, "delta": 1.0, "wd_ratio": 0.3}
ADAMP = {**COMMON, "betas": (0.8, 0.95)}
BALL = {**COMMON, "momentum": 0.8, "dampening": 0.1}
CASES = [
    (AdamP, adamp, {**ADAMP, "nesterov": False}),
    (AdamP, adamp, {**ADAMP, "nesterov": True}),
    (SGDP, sgdp, {**BALL, "nesterov": False, "project_buffer": False}),
    (SGDP, sgdp, {**BALL, "nesterov": False, "project_buffer": True}),
    (SGDP, sgdp, {**BALL, "nesterov": True, "project_buffer": False}),
]


def rows_of_all_lengths(source: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers in rows that are much longer than eps, and much shorter."""
    lengths = 10.0 ** -np.arange(shape[0])
    return source.normal(size=shape) * lengths.reshape(-1, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("execution", ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "transcription", "options"), CASES)
def test_eps_reaches_test_and_projection(method, transcription, options, execution):
    """In two groups, each with its own eps."""
    source = np.random.default_rng(0)
    starts = [rows_of_all_lengths(source, shape) for shape in SHAPES]
    gradients = [[rows_of_all_lengths(source, shape) for shape in SHAPES] for _ in range(6)]
    epsilons = (EPS, 10 * EPS)
    groups = [[nn.Parameter(torch.tensor(w)) for w in starts] for _ in epsilons]
    optimizer = method(
        [{"params": ps, "eps": eps} for ps, eps in zip(groups, epsilons, strict=True)], **options, execution=execution
    )
    for step in gradients:
        for params in groups:
            for p, g in zip(params, step, strict=True):
                p.grad = torch.tensor(g)
        optimizer.step()
    for params, eps in zip(groups, epsilons, strict=True):
        for p, w, *gs in zip(params, starts, *gradients, strict=True):
            expected = transcription(w, gs, {**options, "eps": eps})
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-10, atol=1e-14)
