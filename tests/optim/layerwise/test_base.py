"""What all layer-wise methods have in common: hooks, passes, states, and what they refuse."""

import copy
import gc
import inspect
import pickle
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import MKOR, SINGD, release_gradients, switch
from tests.optim.layerwise.nets import NAMES, OPTIONS, Net, batch, loss_of, make, net, train, weights

SEVERAL = pytest.mark.parametrize("name", NAMES)


def assert_equal(got: dict[str, Any], want: dict[str, Any], rtol: float = 0.0) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=rtol, atol=rtol * 1e-2, msg=lambda m, k=key: f"{k}: {m}")


@SEVERAL
def test_signature_and_docs_say_every_argument(name: str) -> None:
    method = polyak.optim.get(name)
    text = inspect.getdoc(method) or ""
    assert all(re.search(rf"^ +{argument}: ", text, re.M) for argument in inspect.signature(method).parameters)
    assert method.equation and method.paper.link
    assert all(hyper.doc for hyper in method.arguments)


@SEVERAL
@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_it_trains_all_weights_and_leaves_gradients_alone(name: str, execution: str) -> None:
    model, before = net(), weights(net())
    optimizer = make(name, model, execution=execution)
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(step: int) -> None:
        kept.update({n: (p.grad, p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None})

    start = loss_of(model, 0).item()
    for _ in range(20):
        train(model, optimizer, 0, 1, before=keep)
    assert loss_of(model, 0).item() < 0.9 * start
    for key, p in model.named_parameters():
        assert not torch.equal(p, before[key]), key
        assert p.grad is kept[key][0] and torch.equal(p.grad, kept[key][1])


@SEVERAL
def test_modes_agree(name: str) -> None:
    found = []
    for execution in ("eager", "batched"):
        model = net()
        train(model, make(name, model, execution=execution), 0, 6)
        found.append(weights(model))
    assert_equal(*found, rtol=1e-12)


@SEVERAL
def test_a_saved_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = net()
    optimizer = make(name, model)
    train(model, optimizer, 0, 5)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    train(model, optimizer, 5, 9)
    twin = net()
    resumed = make(name, twin)
    saved = torch.load(tmp_path / "run.pt")
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(twin, resumed, 5, 9)
    assert_equal(weights(twin), weights(model))


@SEVERAL
def test_a_copy_of_model_and_optimizer_goes_on_when_it_taps(name: str) -> None:
    model = net()
    optimizer = make(name, model)
    train(model, optimizer, 0, 3)
    for twin, other in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        twin.zero_grad()
        loss = loss_of(twin, 3)
        loss.backward()
        with pytest.raises(RuntimeError, match=r"call tap\(model\) before the passes"):
            other.step(loss=loss)
        other.tap(twin)
        train(twin, other, 3, 6)
        reference = net()
        train(reference, make(name, reference), 0, 6)
        assert_equal(weights(twin), weights(reference))


@SEVERAL
def test_parts_of_a_batch_are_the_batch(name: str) -> None:
    whole, parts = net(), net()
    one, several = make(name, whole), make(name, parts)
    train(whole, one, 0, 4)
    for step in range(4):
        several.zero_grad()
        for i in range(4):
            (loss_of(parts, step, slice(2 * i, 2 * i + 2)) / 4).backward()
        several.step(loss=loss_of(parts, step).detach())
    assert_equal(weights(parts), weights(whole), rtol=1e-8)


@SEVERAL
def test_a_scaled_loss_is_unscaled(name: str) -> None:
    plain, scaled = net(), net()
    one = make(name, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    other = make(name, scaled, scaler=scaler)
    train(plain, one, 0, 5)
    for step in range(5):
        other.zero_grad()
        loss = loss_of(scaled, step)
        scaler.scale(loss).backward()
        scaler.step(other, loss=loss)
        scaler.update()
    assert_equal(weights(scaled), weights(plain), rtol=1e-5)  # unscaled in float32


def test_a_step_that_a_scaler_skips_leaves_nothing_behind() -> None:
    found = []
    for spoilt in (False, True):
        model = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        optimizer = make("singd", model, scaler=scaler)
        for step in (0, 1, 2) if not spoilt else (0, 7, 1, 2):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            scaler.scale(loss * torch.inf if step == 7 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(weights(model))
    assert_equal(found[1], found[0], rtol=1e-5)


def test_under_autocast_the_factors_are_those_of_the_weights_dtype() -> None:
    model = net().float()
    optimizer = make("singd", model)
    x, y = batch(0)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.float()), y)
        loss.backward()
        optimizer.step()
    memory = [v for p in model.parameters() for k, v in optimizer.state[p].items() if k.endswith("factor")]
    assert memory and all(m.dtype == torch.float32 and m.isfinite().all() for m in memory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@SEVERAL
def test_low_precision_factors(name: str, dtype: torch.dtype) -> None:
    model = net().bfloat16()
    optimizer = make(name, model, factor_dtype=dtype)
    for step in range(4):
        optimizer.zero_grad()
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x.bfloat16()), y)
        loss.backward()
        optimizer.step(loss=loss)
    state = optimizer.state[model.conv.weight]
    assert {v.dtype for k, v in state.items() if k.startswith(("input_", "output_"))} == {dtype}
    assert all(p.isfinite().all() for p in model.parameters())


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


@SEVERAL
def test_there_are_hooks_only_for_steps_that_refresh(name: str) -> None:
    model = net()
    period = {"inv_freq": 3} if name.startswith("mkor") else {"T": 3}
    optimizer = make(name, model, **period)
    seen = []
    for step in range(7):
        seen.append(hooks(model))
        train(model, optimizer, step, step + 1)
    assert seen == [3, 0, 0, 3, 0, 0, 3]


@SEVERAL
def test_between_refreshes_no_statistics_are_needed(name: str) -> None:
    model = net()
    optimizer = make(name, model, **({"inv_freq": 5} if name.startswith("mkor") else {"T": 5}))
    train(model, optimizer, 0, 1)
    before = optimizer.memory(optimizer._layers[0])
    train(model, optimizer, 1, 2)
    assert all(torch.equal(value, before[key]) for key, value in optimizer.memory(optimizer._layers[0]).items())


def test_hooks_keep_no_optimizer_alive_and_leave_with_it() -> None:
    model = net()
    optimizer = make("mkor", model)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    loss_of(model, 0).backward()
    assert hooks(model) == 0


def test_a_later_optimizer_takes_the_place_of_the_tap() -> None:
    model = net()
    optimizer = make("mkor", model)
    optimizer.tap(model)
    assert hooks(model) == 3


def test_groups_are_split_into_layers_and_others() -> None:
    model = net()
    optimizer = SINGD(model.parameters(), model=model, aux="adamw", aux_lr=0.5, lr=0.1)
    roles = [(group["role"], len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    assert roles == [("matrix", 5, 0.1), ("rest", 2, 0.5)]
    same = SINGD(model, lr=0.1)
    assert [group["lr"] for group in same.param_groups] == [0.1, 0.1]
    assert same.param_groups[0]["param_names"][0] == "conv.weight"
    excluded = SINGD(model, exclude=["conv"])
    assert [(g["role"], len(g["params"])) for g in excluded.param_groups] == [("matrix", 3), ("rest", 4)]


def test_a_layer_without_gradient_waits() -> None:
    model = net()
    optimizer = make("singd", model)

    def freeze(step: int) -> None:
        model.mix.weight.grad = None

    train(model, optimizer, 0, 1, before=freeze)
    assert not optimizer.state[model.mix.weight].get("layer_step", 0)
    train(model, optimizer, 1, 2)
    assert float(optimizer.state[model.mix.weight]["layer_step"]) == 1
    assert float(optimizer.state[model.conv.weight]["layer_step"]) == 2


# -- what is refused --------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.embed.weight


def twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


MODELS = {
    r"embed\.weight and head\.weight are one weight; exclude='head'": Tied,
    r"0\.weight and 2\.weight are one weight": twice,
    r"layer 1 is a Conv1d; only Linear": lambda: nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)),
    r"layer 0 has groups=2": lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)),
    r"layer 0 pads .* circular": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    r"layer 0 pads .* 'same'": lambda: nn.Sequential(nn.Conv2d(2, 2, 2, padding="same")),
    r"layer 0 is a LSTM": lambda: nn.Sequential(nn.LSTM(2, 2)),
    r"layer 0 is a MultiheadAttention": lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
    r"layer 1 is a ConvTranspose2d": lambda: nn.Sequential(nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 1)),
    r"layer 0 has no shape yet": lambda: nn.Sequential(nn.LazyLinear(2)),
    r"no Linear or Conv2d layer whose weight is trained": lambda: nn.LayerNorm(3),
}


@pytest.mark.parametrize("message", MODELS)
@SEVERAL
def test_layers_that_are_shared_or_not_understood_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polyak.optim.get(name)(MODELS[message]())


def test_what_is_not_understood_may_be_excluded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    assert [layer.name for layer in MKOR(model, exclude=["1"])._layers] == ["0"]
    frozen = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2).requires_grad_(False))
    assert [layer.name for layer in MKOR(frozen)._layers] == ["0"]
    tied = nn.Sequential(Tied(), nn.Linear(4, 2))
    assert [layer.name for layer in MKOR(tied, exclude=["*head"])._layers] == ["1"]


@SEVERAL
def test_the_model_must_be_given(name: str) -> None:
    model = net()
    with pytest.raises(TypeError, match="give it the model, as params or as model="):
        polyak.optim.get(name)(model.parameters())
    with pytest.raises(TypeError, match="exclude must be a sequence of name patterns, got 'conv'"):
        polyak.optim.get(name)(model, exclude="conv")
    with pytest.raises(ValueError, match="no layer matches exclude='convv'"):
        polyak.optim.get(name)(model, exclude=["convv"])
    with pytest.raises(ValueError, match="none of the weights is of a layer of the model"):
        polyak.optim.get(name)(net().parameters(), model=model)
    with pytest.raises(ValueError, match="the bias of conv is trained, and in no group"):
        polyak.optim.get(name)([model.conv.weight], model=model)
    with pytest.raises(TypeError, match="exclude= leaves some to the rule of other weights"):
        polyak.optim.create(name, model, roles={"*": "matrix"})
    assert hooks(model) == 0


@SEVERAL
def test_a_step_without_a_pass_is_refused_and_changes_nothing(name: str) -> None:
    model = net()
    optimizer = make(name, model)
    train(model, optimizer, 0, 2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="no layer statistics of conv since the last step: run forward and backward"):
        optimizer.step(loss=1.0)
    assert_equal(weights(model), before)
    for key, values in state["state"].items():
        assert_equal(optimizer.state_dict()["state"][key], values)
    train(model, optimizer, 2, 3)


def test_a_pass_without_gradients_is_none() -> None:
    model = net()
    optimizer = make("mkor", model)
    with torch.no_grad():
        loss_of(model, 0)
    loss_of(model, 0)  # without a backward pass
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="no layer statistics of conv"):
        optimizer.step()


def test_a_bias_without_its_gradient_is_refused() -> None:
    model = net()
    optimizer = make("mkor", model)
    with pytest.raises(RuntimeError, match="the weight of conv has a gradient, its bias has none"):
        train(model, optimizer, 0, 1, before=lambda step: setattr(model.conv.bias, "grad", None))


@SEVERAL
def test_what_is_not_finite_leaves_the_factors(name: str) -> None:
    model = net()
    optimizer = make(name, model)
    train(model, optimizer, 0, 2)
    before = {layer.name: optimizer.memory(layer) for layer in optimizer._layers}
    with pytest.warns(UserWarning, match="what flows through .* is not finite; its factors stay"):
        x, y = batch(2)
        x[0, 0, 0, 0] = torch.nan
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(loss=loss)
    conv = optimizer._layers[0]
    assert all(torch.equal(v, before["conv"][k]) for k, v in optimizer.memory(conv).items())


@SEVERAL
def test_a_checkpoint_of_other_factors_is_refused(name: str) -> None:
    model = net()
    optimizer = make(name, model)
    train(model, optimizer, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    key = next(k for k in saved["state"][0] if k.startswith("input_") and saved["state"][0][k].ndim)
    spoilt = copy.deepcopy(saved)
    spoilt["state"][0][key] = spoilt["state"][0][key][:-1]
    before = copy.deepcopy(optimizer.memory(optimizer._layers[0]))
    with pytest.raises(ValueError, match=f"conv: {key} has shape .*, expected"):
        optimizer.load_state_dict(spoilt)
    del spoilt["state"][0][key]
    with pytest.raises(ValueError, match=f"conv: the state_dict lacks {key}"):
        optimizer.load_state_dict(spoilt)
    assert_equal(optimizer.memory(optimizer._layers[0]), before)
    optimizer.load_state_dict(saved)


def test_what_steps_in_the_backward_pass_or_knows_no_model_is_refused() -> None:
    model = net()
    optimizer = make("mkor", model)
    with pytest.raises(ValueError, match="MKOR looks at all gradients before or after a step"):
        release_gradients(optimizer)
    plain = polyak.optim.AdamW(net().parameters())
    with pytest.raises(ValueError, match="mkor reads what flows through layers, so it needs the model"):
        switch(plain, "mkor")


@SEVERAL
def test_the_step_that_asks_for_the_state_counts_nothing(name: str) -> None:
    """torch.distributed.checkpoint makes one with lr 0 and gradients of 0 to have a state to load into."""
    model = net()
    optimizer = make(name, model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    layer = optimizer._layers[0]
    assert set(optimizer.memory_names(optimizer.group_of(layer))) <= set(optimizer.state[layer.weight])
    assert float(optimizer.state[layer.weight]["layer_step"]) == 0
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    twin = net()
    train(model, optimizer, 0, 3)
    train(twin, make(name, twin), 0, 3)
    assert_equal(weights(model), weights(twin))


@SEVERAL
def test_diagnostics_change_nothing(name: str) -> None:
    plain, asked = net(), net()
    train(plain, make(name, plain), 0, 4)
    optimizer = make(name, asked)
    train(asked, optimizer, 0, 4, before=lambda _: optimizer.diagnostics())
    assert_equal(weights(asked), weights(plain))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("mkor", "inv_freq", 0), ("mkor", "stat_decay", 1.0), ("mkor", "clipping_value", 0.0), ("mkor", "base", "adan"),
        ("mkor", "variant", "printed"), ("mkor", "warmup_steps", -1), ("mkor_h", "switch", "elbow"),
        ("mkor_h", "knee_beta", -1.0), ("singd", "T", 0), ("singd", "damping", -1.0), ("singd", "alpha1", 1.0),
        ("singd", "lr_cov", -0.1), ("singd", "structures", ("dense",)), ("singd", "structures", ("dense", "banded")),
        ("singd", "kfac_approx", "sum"), ("singd", "loss_average", "mean"), ("ikfac", "alpha1", 0.5),
        ("sngd", "structures", ("dense", "diagonal")), ("singd", "factor_dtype", torch.int8),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be"):
        polyak.optim.get(name)(Net(), **{option: value})


def test_every_layered_method_has_options_here() -> None:
    assert set(NAMES) == set(OPTIONS)
