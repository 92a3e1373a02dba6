"""Parameters of a class of their own, and tensors that wrap others: copied as what they are."""

import pytest
import torch
from torch import nn

from polyak.teachers import EMA


class Quantized(nn.Parameter):
    """Whole numbers with a scale that hangs on the parameter, as quantized weights are kept."""

    def __new__(cls, data, scale=1.0):
        self = torch.Tensor._make_subclass(cls, data, False)
        self.scale = scale
        return self

    def __deepcopy__(self, memo):
        memo[id(self)] = found = Quantized(self.data.clone(), self.scale)
        return found

    def to(self, *args):
        """As bitsandbytes' of four bits, takes no ``copy``."""
        return Quantized(self.data.to(*args), self.scale)


class QuantizedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Quantized(torch.randint(-8, 8, (4, 4), dtype=torch.int8), 0.5)
        self.adapter = nn.Linear(4, 4)

    def forward(self, x):
        return x @ (self.weight.float() * self.weight.scale) + self.adapter(x)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_parameters_of_a_class_of_their_own_stay_so(device):
    model = QuantizedLinear()
    ema = EMA(model, 0.5, start="teacher", device=device)
    assert type(ema.module.weight) is Quantized and ema.module.weight.scale == 0.5
    assert ema.module.weight.data_ptr() != model.weight.data_ptr()
    x = torch.randn(2, 4)
    torch.testing.assert_close(ema(x), model(x).detach())
    with torch.no_grad():
        model.weight += 1
        model.adapter.weight.zero_()
    ema.update()
    with ema.swapped(), torch.no_grad():
        torch.testing.assert_close(ema.module.weight.data, model.weight.data)
        swapped = model(x)
    torch.testing.assert_close(ema(x), swapped)


class RepackedLinear(QuantizedLinear):
    """Puts its weight into another layout at its first forward, as bitsandbytes' of four bits does on a CPU."""

    def forward(self, x):
        if self.weight.ndim == 2:
            self.weight.data = self.weight.data.flatten()
        return x @ (self.weight.float().view(4, 4) * self.weight.scale) + self.adapter(x)


@pytest.mark.parametrize("first", ["online", "averaged"])
def test_weights_that_are_repacked_in_a_forward_go_on(first):
    model = RepackedLinear()
    ema = EMA(model, [0.5, 0.9], start="teacher")
    x = torch.randn(2, 4)
    (model if first == "online" else ema)(x)
    ema.update()
    with ema.swapped(which=1):
        model(x)
    state = ema.state_dict()
    assert state["averages"][0].keys() == {"adapter.weight", "adapter.bias"}  # the rest is the model's
    ema.load_state_dict(state)
    model.weight = Quantized(model.weight.data.clone(), 0.25)
    ema.update()
    known = ema._known
    ema.update()
    assert ema._known is known
    for module in ema.modules:
        assert module.weight.scale == 0.25 and torch.equal(module.weight.data, model.weight.data)
        assert module.weight.data_ptr() != model.weight.data_ptr()
    torch.testing.assert_close(ema(x), model(x).detach())


class Wrapped(torch.Tensor):
    """Has no memory of its own, but a tensor inside, as sharded and quantized ones have."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def strip(x):
            return x.inner if isinstance(x, Wrapped) else x

        out = func(*map(strip, args), **(kwargs or {}))
        if func in (torch.ops.aten.copy_.default,):
            return args[0]
        keeps = func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten.alias.default)
        return Wrapped(out) if keeps else out

    def __deepcopy__(self, memo):
        return Wrapped(self.inner.clone())


def test_tensors_without_memory_of_their_own_are_told_apart():
    """By their address, 0, they would all be one."""
    model = nn.Module()
    for name in ("a", "b"):
        wrapped = Wrapped(torch.randn(2, 3))
        model.register_parameter(name, nn.Parameter(wrapped, requires_grad=False))
    model.head = nn.Linear(2, 2)
    for options in ({"frozen": "copy"}, {"frozen": "share"}, {"frozen": "copy", "teacher": None}):
        ema = EMA(model, 0.5, start="teacher", **options)
        ema.update()
        held = {"head.weight", "head.bias"} | ({"a", "b"} if options["frozen"] == "copy" else set())
        assert ema.averages[0].keys() == held
        with ema.swapped():
            pass
        for name in held & {"a", "b"}:
            own = ema.averages[0][name]
            assert torch.equal(own.inner, getattr(model, name).inner)
            assert own.inner.data_ptr() != getattr(model, name).inner.data_ptr()


def test_the_real_quantized_layers():
    bnb = pytest.importorskip("bitsandbytes")
    eight = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    x = torch.randn(2, 64)
    for layer in (eight, bnb.nn.Linear4bit(64, 64, bias=False)):
        model = nn.Sequential(layer, nn.Linear(64, 64)).to("cpu")
        ema = EMA(model, 0.5)
        assert type(ema.module[0].weight) is type(model[0].weight)
        torch.testing.assert_close(ema(x), model(x).detach(), atol=2e-2, rtol=0)  # its modes have other kernels
        for _ in range(3):
            ema.update()
            with ema.swapped():
                model(x)
        torch.testing.assert_close(ema(x), model(x).detach(), atol=2e-2, rtol=0)
