"""Models that are hard to copy: copied right, or refused with what to do instead."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from polyak.teachers import EMA, Cosine, MoCo


def moved(model: nn.Module, value: float) -> None:
    for p in model.parameters():
        nn.init.constant_(p, value)


def linear() -> nn.Linear:
    model = nn.Linear(4, 1, bias=False)
    moved(model, 1.0)
    return model


def outputs(model: nn.Module, **options: object) -> tuple[float, float]:
    """Of the averaged model, and of the model with the averages in it."""
    ema = EMA(model, 0.5, start="teacher", **options)
    moved(model, 3.0)
    ema.update()
    x = torch.ones(1, 4)
    with ema.swapped(), torch.no_grad():
        swapped = model(x).item()
    return (swapped if options else ema(x).item()), swapped


@pytest.mark.parametrize("by", ["compile", "method", "compiled in place"])
def test_a_forward_that_is_an_attribute_is_the_copy_s(by):
    model = linear()
    if by == "compile":
        model.forward = torch.compile(model.forward, backend="eager")
    elif by == "method":
        model.forward = types.MethodType(lambda self, x: x @ self.weight.T, model)
    else:
        model.compile(backend="eager")
    assert outputs(model) == (8.0, 8.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_function_over_a_forward_is_refused_by_copies_alone(compiled):
    """A copy would run it on the weights that it was made around."""

    def wrapped(inner: nn.Module):
        plain = inner.forward
        run = lambda x: 1.0 * plain(x)  # noqa: E731
        return torch.compile(run, backend="eager") if compiled else run

    model = nn.Sequential(linear())
    model[0].forward = wrapped(model[0])
    with pytest.raises(ValueError, match=r"forward of '0' is a function.*teacher=None.*swapped"):
        EMA(model, 0.5)
    with pytest.raises(ValueError, match="forward of '0'"):
        MoCo(model, dim=1, queue_size=4)
    assert outputs(model, teacher=None) == (8.0, 8.0)


class Head(nn.Module):
    """As DINO's: the last layer's weight is computed from two parameters, and no leaf."""

    def __init__(self, computed) -> None:
        super().__init__()
        self.mlp, self.last = nn.Linear(8, 8), computed(nn.Linear(8, 6, bias=False))

    def forward(self, x):
        return self.last(nn.functional.normalize(self.mlp(x), dim=-1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "computed",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_computed_weights_are_those_of_the_copy(computed):
    model = Head(computed).double()
    ema = EMA(model, Cosine(100, 0.5), start="teacher", buffers="keep")
    teacher = copy.deepcopy(ema.module)  # leaves only
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
        for name, p in teacher.named_parameters():
            p.lerp_(model.get_parameter(name), 0.5)
    ema.update()
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(ema(x), teacher.eval()(x).detach())
    with ema.swapped():
        torch.testing.assert_close(ema.model.eval()(x).detach(), teacher(x).detach())


def test_what_cannot_be_copied_is_said_with_what_does():
    model = linear()
    model.history = [model.weight * 2]
    with pytest.raises(ValueError, match=r"Linear cannot be copied.*teacher=None"):
        EMA(model, 0.5)
    EMA(model, 0.5, teacher=None).update()


def test_models_sharded_by_others_are_refused():
    """Pieces of which a rank has averages that its forward never reads."""

    class FullyShardedDataParallel(nn.Sequential):
        """Has the name of FSDP1."""

    pieces = linear()
    pieces.weight._fsdp_flattened = True  # as its parameters have inside of it
    for model in (FullyShardedDataParallel(linear()), pieces):
        with pytest.raises(RuntimeError, match="FSDP1"):
            EMA(model, 0.5, teacher=None)
        with pytest.raises(RuntimeError, match="FSDP1"), EMA(linear(), 0.5).swapped(model):
            pass
    pieces = linear()
    pieces.weight.ds_id = 0
    with pytest.raises(RuntimeError, match="ZeRO-3"):
        EMA(pieces, 0.5)
