"""SINGD, IKFAC and SNGD: where the factors go, and the options that no recorded trajectory has."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import IKFAC, SGD, SINGD, SNGD, AdamW
from tests.optim.layerwise.nets import loss_of, make, net, train, weights


def linear() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=False).double(), torch.randn(16, 3, dtype=torch.float64)


def step(layer: nn.Linear, optimizer: SINGD, x: Tensor) -> Tensor:
    optimizer.zero_grad()
    out = layer(x)
    (out.square().flatten(1).sum(1) / 2).mean().backward()
    optimizer.step()
    return out.detach()


def factors(optimizer: SINGD) -> tuple[Tensor, Tensor]:
    """K and C of the first layer."""
    layer = optimizer._layers[0]
    memory = optimizer.memory(layer)
    k, c = (s.dense(memory[f"{side}_factor"], n) for side, s, n in optimizer.sides(layer, optimizer.group_of(layer)))
    return k, c


def test_ikfac_goes_to_kfac() -> None:
    layer, x = linear()
    optimizer = IKFAC(layer, lr=0.0, T=1, lr_cov=0.05, damping=0.1)
    for _ in range(1500):
        out = step(layer, optimizer, x)
    k, c = factors(optimizer)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(k @ k.T, torch.linalg.inv(x.T @ x / 16 + 0.1 * eye), rtol=1e-6, atol=1e-8)
    # of a mean loss the gradient of a sample is 1/16 of out, and 16 * sum of squares their mean
    torch.testing.assert_close(c @ c.T, torch.linalg.inv(out.T @ out / 16 + 0.1 * eye[:2, :2]), rtol=1e-6, atol=1e-8)


def test_singd_by_hand() -> None:
    layer, x = linear()
    optimizer = SINGD(layer, lr=0.1, momentum=0.0, T=1, lr_cov=0.05, damping=0.1, weight_decay=0.2, alpha1=0.5)
    k, c = torch.eye(3, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    mk, mc = torch.zeros_like(k), torch.zeros_like(c)
    for _ in range(3):
        before = layer.weight.detach().clone()
        out = step(layer, optimizer, x)
        hk, hc = k.T @ (x.T @ x / 16) @ k, c.T @ (out.T @ out / 16) @ c
        nk = (hc.trace() / 2 * hk + 0.1 * (c.T @ c).trace() / 2 * k.T @ k - torch.eye(3, dtype=torch.float64)) / 2
        nc = (hk.trace() / 3 * hc + 0.1 * (k.T @ k).trace() / 3 * c.T @ c - torch.eye(2, dtype=torch.float64)) / 2
        mk, mc = 0.5 * mk + nk, 0.5 * mc + nc
        k, c = k - 0.05 * k @ mk, c - 0.05 * c @ mc
        want = before - 0.1 * (c @ c.T @ (out.T @ x / 16) @ k @ k.T + 0.2 * before)
        torch.testing.assert_close(layer.weight.detach(), want, rtol=1e-11, atol=1e-12)


def test_the_steps_of_the_factors_are_bounded() -> None:
    layer, x = linear()
    optimizer = SINGD(layer, lr=0.0, T=1, lr_cov=0.1, normalize_lr_cov=True)
    for _ in range(20):
        before = factors(optimizer)
        step(layer, optimizer, 1e4 * x)
        for old, new in zip(before, factors(optimizer), strict=True):
            assert (new - old).norm() <= 0.1 * old.norm() * 3 + 1e-12


@pytest.mark.parametrize(("average", "factor"), [("batch", 4), ("batch+sequence", 20), (None, 1)])
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_the_loss_says_what_a_sample_is(average: Any, factor: int, approx: Any) -> None:
    layer, _ = linear()
    optimizer = SINGD(layer, lr=0.0, T=1, lr_cov=0.1, alpha1=0.0, damping=0.0, loss_average=average, kfac_approx=approx)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    g = layer(x).detach() / 4
    step(layer, optimizer, x)
    flat = x.flatten(0, 1) if approx == "expand" else x.mean(1)
    left = g.flatten(0, 1) if approx == "expand" else g.sum(1)
    hk, hc = flat.T @ flat / len(flat), factor * left.T @ left
    eye = torch.eye(3, dtype=torch.float64)
    want = eye - 0.1 * (hc.trace() / 2 * hk - eye) / 2
    torch.testing.assert_close(factors(optimizer)[0], want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("aux", ["sgd", "adamw"])
def test_other_weights_take_the_auxiliary_rule(aux: Any) -> None:
    model, twin = net(), net()
    optimizer = make("singd", model, aux=aux, aux_lr=0.03, aux_betas=(0.8, 0.9), aux_weight_decay=0.1, momentum=0.7)
    loss_of(model, 0).backward()
    optimizer.step()
    loss_of(twin, 0).backward()
    if aux == "sgd":
        SGD(twin.norm.parameters(), lr=0.02, momentum=0.7).step()
    else:
        AdamW(twin.norm.parameters(), lr=0.03, betas=(0.8, 0.9), eps=1e-10, weight_decay=0.1).step()
    want = twin.norm.bias.detach()
    torch.testing.assert_close(model.norm.bias.detach(), want, rtol=1e-12, atol=1e-14)


def test_sngd_counts_on_its_schedule() -> None:
    layer, x = linear()
    optimizer = SNGD(layer, lr=1e-3, T=1, lr_cov=0.5)
    step(layer, optimizer, x)
    rates = {}
    for count in (0, 100, 101, 499, 500):
        optimizer.state[layer.weight]["layer_step"] = torch.tensor(float(count))
        rates[count] = optimizer.factor_lr(optimizer._layers[0])
    assert rates == {0: 2e-4, 100: 2e-4, 101: 2e-3, 499: 2e-3, 500: 0.5}


def test_the_decay_of_sngd_begins_late() -> None:
    found = []
    for decay in (0.0, 0.5):
        model = net()
        optimizer = SNGD(model, lr=1e-3, T=2, weight_decay=decay)
        train(model, optimizer, 0, 40)
        found.append(weights(model))
        train(model, optimizer, 40, 41)
        found.append(weights(model))
    assert all(torch.equal(p, found[2][name]) for name, p in found[0].items())
    assert not any(torch.equal(p, found[3][name]) for name, p in found[1].items())


def test_state_in_bytes() -> None:
    sizes = {kind: SINGD.state_bytes_per_parameter(structures=(kind, kind)) for kind in ("dense", "diagonal", "tril")}
    assert sizes["dense"] == 20.0 and sizes["diagonal"] == pytest.approx(4.0, abs=0.02)
    assert sizes["tril"] == pytest.approx(12.0, abs=0.02)
    assert IKFAC.state_bytes_per_parameter(factor_dtype=torch.bfloat16) == 8.0
    layer = nn.Linear(1024, 1024, bias=False)
    optimizer = SINGD(layer, structures=("diagonal", "dense"))
    layer(torch.ones(2, 1024)).sum().backward()
    optimizer.step()
    assert optimizer.state_bytes() / 1024**2 == pytest.approx(
        SINGD.state_bytes_per_parameter(structures=("diagonal", "dense")), abs=0.001
    )
