"""A layer that is unfrozen after the optimizer was built: refused until it is listened to, then like the others."""

import pytest
import torch

from tests.optim.layerwise.nets import NAMES, loss_of, make, net, weights


def passes(model: torch.nn.Module, step: int) -> torch.Tensor:
    model.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_a_late_layer_is_listened_to_after_a_tap(name: str) -> None:
    model, twin = net(), net()
    model.mix.requires_grad_(False)
    optimizer, whole = make(name, model), make(name, twin)
    model.mix.requires_grad_(True)
    optimizer.add_param_group({"params": [("mix.weight", model.mix.weight)], "role": "matrix"})
    before, loss = weights(model), passes(model, 0)
    with pytest.raises(RuntimeError, match=r"is of no layer that is listened to: call tap\(model\) before the passes"):
        optimizer.step(loss=loss)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    optimizer.tap(model)
    for step in range(3):
        optimizer.step(loss=passes(model, step))
        whole.step(loss=passes(twin, step))
    for key, value in weights(twin).items():
        torch.testing.assert_close(weights(model)[key], value, rtol=1e-10, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_a_late_layer_of_the_rest_takes_the_rule_of_other_weights(name: str) -> None:
    model = net()
    model.mix.requires_grad_(False)
    optimizer = make(name, model)
    model.mix.requires_grad_(True)
    optimizer.add_param_group({"params": [("mix.weight", model.mix.weight)]})
    before = weights(model)
    optimizer.step(loss=passes(model, 0))
    assert not torch.equal(model.mix.weight, before["mix.weight"])
    assert "layer_step" not in optimizer.state[model.mix.weight]
