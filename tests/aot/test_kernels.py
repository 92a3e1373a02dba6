"""Real packages: what they compute, with how many threads, and what calling and making them leaves alone."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from polyak import aot
from polyak.aot import kernel as kernels
from polyak.aot import modes
from tests.aot.sources import CPU, F32, anonymous, descend, products, source, works


@pytest.mark.parametrize("n", [2, 1000, 1 << 17])
def test_a_kernel_writes_what_its_function_writes(real, n):
    kernel = aot.load(source())
    weight, gradient, lr = torch.randn(n), torch.randn(n), torch.tensor(0.3, dtype=torch.float64)
    expected = weight.clone()
    descend(expected, gradient, lr)
    kernel.run([weight, gradient, lr])
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (300, 7), (5, 4000), (64, 64)])
def test_a_kernel_returns_what_its_function_returns(shape):
    kernel = aot.load(anonymous())
    a, b = torch.rand(shape), torch.rand(shape)
    torch.testing.assert_close(tuple(kernel.run([a, b])), products(a, b))


THREADS = """
import os, torch
torch.set_num_threads(1)
from polyak import aot
from tests.aot.sources import anonymous, source
from threading import active_count

def threads(kernel, arrays):
    counts = []
    for n in (1, 3):
        torch.set_num_threads(n)
        kernel.run(arrays)
        counts.append(len(os.listdir("/proc/self/task")))
    return counts[1] - counts[0]

one, every = aot.load(anonymous()), aot.load(source())
big = torch.ones(1000, 1000)
print(threads(one, [big, big]), threads(every, [big.view(-1), big.view(-1), torch.ones((), dtype=torch.float64)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_follow_set_num_threads_as_the_kernel_runs(real):
    aot.load(anonymous())
    out = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["0", "2"]
    assert out.stderr == ""


class Watch(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called in the caller's thread")


MODES = {
    "fake": lambda: FakeTensorMode(),
    "flops": lambda: FlopCounterMode(display=False),
    "inference": lambda: torch.inference_mode(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "function": lambda: Watch(),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_do_not_reach_what_is_compiled(builder, mode):
    plain = aot.load(anonymous()).path.name
    aot.obtain._state.kernels.clear()
    with MODES[mode]():
        assert aot.load(anonymous()).path.name == plain  # traced again, to the very same graph
        assert aot.load(source()) is not None
    assert works(aot.load(source()))
    assert builder.built == ["a test's products", "a test's descend"]


def test_usable_where_compiled_code_does_what_torch_would():
    x = torch.ones(3)
    assert modes.usable([x, torch.nn.Parameter(x)])
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu"):
        assert modes.usable([x])
    with FlopCounterMode(display=False):
        assert not modes.usable([x])
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert not modes.usable([x, fake])
    seen = []
    torch.vmap(lambda row: seen.append(modes.usable()) or row)(torch.ones(2, 2))
    assert seen == [False]
    assert modes.usable()


def test_nothing_is_kept_alive(builder):
    """No example, no function, no kernel. (Fake tensors, which torch keeps for a while, have no memory.)"""

    def real_tensors():
        gc.collect()
        return {id(o) for o in gc.get_objects() if type(o) is torch.Tensor}

    def load():
        def function(a, b):
            return (a + b).sum(1), a - b

        kernel = aot.load(anonymous(function=function))
        return [weakref.ref(kernel), weakref.ref(function)]

    load()
    before = real_tensors()
    died = load()
    assert real_tensors() <= before
    assert [ref() for ref in died] == [None] * 2


def test_one_kernel_serves_all_who_ask(real):
    assert aot.load(source()) is aot.load(source())


def test_the_documented_loader_serves_where_the_direct_one_is_missing(real, monkeypatch):
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", None)
    monkeypatch.setattr(
        torch._inductor, "aoti_load_package", lambda path, device_index: lambda a: (a, path, device_index)
    )
    x = torch.ones(2)
    assert kernels.Kernel(real, CPU).run([x]) == [x, str(real), -1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_loads_and_runs(real):
    kernel = aot.load(source())
    if (child := os.fork()) == 0:
        code = 1
        try:
            same = works(kernel)
            del kernel
            gc.collect()
            code = 0 if same and works(aot.load(source())) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"threads": "many"}, "threads.*many"), ({"inputs": (aot.Array(F32, (0,)),)}, "size.*0"),
     ({"inputs": (aot.Array(F32, ("n+1",)),)}, r"size.*n\+1")],
)  # fmt: skip
def test_a_source_is_checked_as_it_is_said(changes, words):
    with pytest.raises(ValueError, match=words):
        source(**changes)
