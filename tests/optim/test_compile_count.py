"""How much is compiled: one graph a chain and dtype, whatever the model, the options and the gradients present."""

import json

import pytest

from tests.optim.fresh import python

PROGRAM = """
import json, sys, warnings
import torch
from torch import nn
import polyak.optim
from torch._dynamo.utils import counters

SHAPES = [  # square ones first, sizes that are powers of two, primes, convolutions, vectors, one element, 0-d
    [(200, 200), (64, 64), (64,), (64, 64), (16, 16)],
    [(10, 10), (10,), (3, 3), (2, 2), (1,), (), (5,)],
    [(32, 16, 3, 3), (150, 131), (131,), (131, 7), (7,), (70000,)],
    [(300, 200), (200, 300), (9, 2), (2, 9), (1, 8), (8, 1), (0, 4)],
]

def train(make, shapes, steps=3, lr=None, missing=False, dtype=torch.float32):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]
    matrices = [p for p in params if p.ndim > 1]
    optimizer = make(matrices) if make is MUON else make(params)
    reference = [nn.Parameter(p.detach().clone()) for p in params]
    plain = make([p for p in reference if p.ndim > 1]) if make is MUON else make(reference)
    plain.execution = "eager"
    for t in range(steps):
        for i, (p, q) in enumerate(zip(params, reference)):
            p.grad = None if missing and (t + i) % 3 == 0 else torch.randn_like(p)
            q.grad = p.grad
        for o in (optimizer, plain):
            for group in o.param_groups:
                group["lr"] = lr or group["lr"] * 0.9
                if "betas" in group:
                    group["betas"] = tuple(b * 0.99 for b in group["betas"])
            o.step()
    for p, q in zip(params, reference):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=2e-3, atol=2e-4)

def counted():
    return counters["stats"].get("unique_graphs", 0)

def MUON(params):
    return polyak.optim.Muon(params, execution="compiled")

def maker(name, options):
    return MUON if name == "muon" else lambda ps: polyak.optim.get(name)(ps, execution="compiled", **options)

after_import = counted()
out = {"import": after_import}
for name, options in json.loads(sys.argv[1]):
    make, before = maker(name, options), counted()
    train(make, SHAPES[0])
    first = counted() - before
    for shapes in SHAPES[1:]:
        train(make, shapes)
    train(make, SHAPES[0], lr=torch.tensor(0.01))
    train(make, SHAPES[0] + SHAPES[2], missing=True, steps=6)
    again = counted() - before - first
    train(make, SHAPES[0], dtype=torch.bfloat16)
    out[name] = [first, again, counted() - before - first - again]
print(json.dumps(out))
"""


def counts(cases: list[tuple[str, dict]]) -> dict[str, list[int]]:
    return json.loads(python("-c", PROGRAM, json.dumps(cases)).splitlines()[-1])


def test_one_graph_a_chain() -> None:
    """Elementwise: one. A question over the tensor or over all tensors: one more, for the pass that asks it."""
    found = counts([("adamw", {}), ("csgdm", {"nesterov": True})])
    assert found == {"import": 0, "adamw": [1, 0, 1], "csgdm": [2, 0, 2]}


@pytest.mark.slow
def test_one_graph_a_chain_of_every_kind() -> None:
    elementwise, per_tensor = ("lion", {}), [("adamp", {"delta": 3.0}), ("tam", {}), ("muon", {})]
    over_all = [("adan", {"max_grad_norm": 1.0}), ("adatam", {"scope": "global"})]
    found = counts([elementwise, *per_tensor, *over_all])
    for name, _ in over_all:
        assert sum(found.pop(name)[:2]) == 2, name
    # Vectors have no rows to project, so AdamP runs plain Adam on them: a chain more.
    assert found == {"import": 0, "lion": [1, 0, 1], "adamp": [3, 0, 3], "tam": [2, 0, 2], "muon": [2, 0, 2]}


BROKEN = """
import warnings
import torch
from torch import nn
import polyak.optim

def refuse(*args, **kwargs):
    raise OSError("no compiler here\\nand more")

torch.compile = refuse
results = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for execution in ("compiled", "batched"):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(s)) for s in ((200, 200), (7,), (3, 4))]
        optimizer = polyak.optim.CAdamW(params, execution=execution)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        results.append((params, optimizer))
told = [str(w.message) for w in caught if w.category is RuntimeWarning]
assert len(told) == 1, told
assert "torch.compile failed (OSError: no compiler here)" in told[0] and "batched" in told[0], told
for a, b in zip(results[0][0], results[1][0]):
    assert torch.equal(a, b)
text = results[0][1].explain()
assert "CAdamW: batched (torch.compile failed in this process)" in text, text
"""


def test_a_compiler_that_fails_is_announced_once() -> None:
    python("-c", BROKEN)


IMPORT = """
import sys
import polyak.optim
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
import torch
from torch import nn
small, big = nn.Linear(4, 4), nn.Linear(600, 600)
small.weight.grad = torch.ones(4, 4)
optimizer = polyak.optim.AdamW(small.parameters())
optimizer.step()  # a small model is not worth a compilation
assert "torch._inductor.codegen.cpp" not in sys.modules
assert "AdamW: batched (auto: 20 elements, fewer than" in optimizer.explain()
assert "AdamW: compiled (auto: 360,600 elements, at least" in polyak.optim.AdamW(big.parameters()).explain()
"""


def test_nothing_is_compiled_at_import_or_for_a_small_model() -> None:
    python("-c", IMPORT)
