"""Roles: which groups a matrix method's main rule takes, how the others are filled, and Muon's own word for it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import MatrixMethod, Muon, Paper, chain, create, switch
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.rule import Options
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.matrices import Polar, orthogonalize
from polyak.optim.vocabulary.weight import decay, descend


class Other(MatrixMethod):
    """Another matrix method, that treats heads apart.

    ::

        W <- W - lr * polar(M)
    """

    slug = "other"
    paper = Paper("None", 2026)
    roles = ("matrix", "head")

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(), descend())
        if options["role"] == "head":
            return chain(momentum_ema(), descend())
        return chain(momentum_ema(), orthogonalize(Polar("svd")), descend())


def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10))


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 2))


def test_every_matrix_method_splits_a_module() -> None:
    groups = Other(model(), aux_lr=0.01).param_groups
    assert [(g["role"], g["lr"], len(g["params"])) for g in groups] == [
        ("matrix", 0.1, 1),
        ("head", 0.1, 1),
        ("rest", 0.01, 3),
    ]
    assert all("use_muon" not in g for g in groups)


def test_roles_choose_the_chain() -> None:
    optimizer = Other(model())
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    kept = {g["role"]: {n for p in g["params"] for n in optimizer.state[p]} for g in optimizer.param_groups}
    assert kept["matrix"] == kept["head"] == {"momentum_buffer"}
    assert kept["rest"] == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("role", ["vector", "embedding", "rest"])
def test_a_group_added_with_a_role_is_filled(role: str) -> None:
    optimizer = Other([matrix()], aux_lr=0.03, aux_betas=(0.5, 0.6))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "role": role, "aux": 1})
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["betas"]) == (0.03, (0.5, 0.6))
    with pytest.raises(ValueError, match=r"Other: role must be one of .*got 'tail'"):
        optimizer.add_param_group({"params": [matrix()], "role": "tail"})
    with pytest.raises(ValueError, match=r'Other needs matrices, parameter 0 has shape \(2,\); .*role="vector"'):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_fill_as_the_original(twin: Any) -> None:
    optimizer = twin(Muon([matrix()], aux_lr=0.03))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "role": "vector"})
    assert optimizer.param_groups[1]["lr"] == 0.03


def test_one_cycle_moves_the_momentum_of_muon_as_of_torch() -> None:
    """Torch's schedulers look for betas in the defaults first, and would then leave momentum alone."""
    seen = []
    for method in (torch.optim.Muon, Muon):
        w = nn.Parameter(torch.randn(6, 5))
        optimizer = method([w])
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=10, base_momentum=0.8, max_momentum=0.9
        )
        values = []
        for _ in range(9):
            w.grad = torch.randn(6, 5)
            optimizer.step()
            scheduler.step()
            values.append(optimizer.param_groups[0]["momentum"])
        seen.append(values)
    assert seen[0] == seen[1] and len(set(seen[1])) > 3


def test_one_cycle_leaves_the_betas_of_other_groups() -> None:
    optimizer = Muon(model(), aux_betas=(0.7, 0.8))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    assert optimizer.param_groups[1]["betas"] == (0.7, 0.8)


def test_create_applies_the_weight_decay_of_other_groups() -> None:
    options = {"weight_decay": 0.1, "aux_weight_decay": 0.01}
    for roles, expected in ((None, [0.1, 0.01, 0.0]), ({"0.weight": "matrix"}, [0.1, 0.01, 0.0])):
        groups = create("muon", model(), roles=roles, **options).param_groups
        assert [g["weight_decay"] for g in groups] == expected
    assert [g["weight_decay"] for g in Muon(model(), **options).param_groups] == [0.1, 0.01]
    assert [g["weight_decay"] for g in create("muon", model(), aux_weight_decay=0.2).param_groups] == [0.0, 0.2, 0.0]


def test_muon_knows_use_muon() -> None:
    vector = nn.Parameter(torch.ones(2))
    groups = Muon([{"params": [matrix()]}, {"params": [vector], "use_muon": False}]).param_groups
    assert [(g["use_muon"], g["role"]) for g in groups] == [(True, "matrix"), (False, "rest")]
    groups = Muon([{"params": [matrix()], "role": "embedding"}]).param_groups
    assert groups[0]["use_muon"] is False
    with pytest.raises(ValueError, match="role='embedding' and use_muon=True"):
        Muon([{"params": [matrix()], "role": "embedding", "use_muon": True}])


def test_a_state_without_roles_loads() -> None:
    """As it was saved before groups had roles."""

    def stepped() -> tuple[Muon, list[Tensor]]:
        torch.manual_seed(0)
        optimizer = Muon(model(), aux_lr=0.1)
        params = [p for g in optimizer.param_groups for p in g["params"]]
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, 0.1 * (i + 1))
        return optimizer, params

    a, of_a = stepped()
    a.step()
    saved = copy.deepcopy(a.state_dict())
    for group in saved["param_groups"]:
        del group["role"]
    b, of_b = stepped()
    b.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(of_b, of_a, strict=True):
            p.copy_(q)
    a.step()
    b.step()
    assert all(torch.equal(p, q) for p, q in zip(of_a, of_b, strict=True))
    assert [g["role"] for g in b.param_groups] == ["matrix", "rest"]


def test_switching_fills_groups_by_their_role() -> None:
    optimizer = switch(create("muon", model()), "muon", lr=0.5, aux_lr=0.05, aux_betas=(0.5, 0.6))
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05, 0.05]
    assert [g["betas"][0] for g in optimizer.param_groups[1:]] == [0.5, 0.5]
