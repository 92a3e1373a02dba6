"""How much is compiled: a chain and dtype has one kernel for small tensors and one for large, whatever the model."""

import json

import pytest

from tests.optim.fresh import python

PROGRAM = """
import json, sys, warnings
import torch
from torch import nn
import polyak.optim
from polyak.optim.engine import units

SHAPES = [  # square ones first, sizes that are powers of two, primes, convolutions, vectors, one element, 0-d
    [(200, 200), (64, 64), (64,), (64, 64), (16, 16)],
    [(10, 10), (10,), (3, 3), (2, 2), (1,), (), (5,)],
    [(32, 16, 3, 3), (150, 131), (131,), (131, 7), (7,), (70000,)],
    [(300, 200), (200, 300), (9, 2), (2, 9), (1, 8), (8, 1), (0, 4)],
]

def train(make, shapes, steps=3, lr=None, missing=False):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
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
    return sum(map(len, units._compiled.values()))

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
    out[name] = [first, again]
print(json.dumps(out))
"""


def counts(cases: list[tuple[str, dict]]) -> dict[str, list[int]]:
    return json.loads(python("-c", PROGRAM, json.dumps(cases)).splitlines()[-1])


def test_kernels_of_a_chain() -> None:
    """Of small and of large tensors; a question over the tensor is answered on the way, so it takes no more."""
    assert counts([("adamw", {})]) == {"import": 0, "adamw": [2, 0]}


@pytest.mark.slow
def test_kernels_of_chains_of_every_kind() -> None:
    """A question over all tensors takes one more, for the pass that asks it."""
    elementwise, per_tensor = ("lion", {}), [("cadamw", {}), ("adamp", {"delta": 3.0}), ("tam", {}), ("muon", {})]
    over_all = [("adan", {"max_grad_norm": 1.0}), ("adatam", {"scope": "global"})]
    found = counts([elementwise, *per_tensor, *over_all])
    wanted = {"lion": 2, "cadamw": 2, "tam": 2, "muon": 4, "adan": 4, "adatam": 4}
    assert found.pop("import") == 0
    # vectors have no rows to project, so on them it is plain Adam; the first large one comes with a later model
    assert found.pop("adamp") == [3, 1]
    assert found == {name: [kernels, 0] for name, kernels in wanted.items()}


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
