"""Groups that create() and Muon make: roles, weight decay, overrides, defaults of auxiliary groups."""

import pytest
import torch
from torch import nn

import polyak.optim as optim


class Transformer(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.attn = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


def named(optimizer: torch.optim.Optimizer) -> list[set[str]]:
    return [set(group["param_names"]) for group in optimizer.param_groups]


def test_roles() -> None:
    assert optim.roles_of(Transformer()) == {
        "wte.weight": "embedding",
        "attn.weight": "matrix",
        "attn.bias": "vector",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "mlp.weight": "matrix",
        "mlp.bias": "vector",
        "lm_head.weight": "head",
    }


def test_a_tied_weight_counts_once_as_embedding() -> None:
    roles = optim.roles_of(Transformer(tied=True))
    assert roles["wte.weight"] == "embedding"
    assert "lm_head.weight" not in roles
    optimizer = optim.create("muon", Transformer(tied=True))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 7


def test_create_decays_no_vectors() -> None:
    optimizer = optim.create("adamw", Transformer(), lr=0.1, weight_decay=0.3)
    decayed, plain = named(optimizer)
    assert decayed == {"wte.weight", "attn.weight", "mlp.weight", "lm_head.weight"}
    assert plain == {"attn.bias", "norm.weight", "norm.bias", "mlp.bias"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_create_can_decay_everything() -> None:
    optimizer = optim.create("adamw", Transformer(), weight_decay=0.3, no_decay_1d=False)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3]


def test_create_leaves_frozen_parameters_out() -> None:
    model = Transformer()
    model.mlp.requires_grad_(False)
    listed = set().union(*named(optim.create("lion", model)))
    assert listed == {"wte.weight", "attn.weight", "attn.bias", "norm.weight", "norm.bias", "lm_head.weight"}


def test_create_splits_for_muon_and_fills_auxiliary_defaults() -> None:
    optimizer = optim.create("muon", Transformer(), lr=0.05, aux_lr=1e-3, aux_eps=1e-7, aux_betas=(0.8, 0.9))
    by_name = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert {name for name, group in by_name.items() if group["use_muon"]} == {"attn.weight", "mlp.weight"}
    assert by_name["attn.weight"]["lr"] == 0.05
    for name in ("wte.weight", "lm_head.weight", "norm.weight"):
        group = by_name[name]
        assert (group["lr"], group["eps"], group["betas"]) == (1e-3, 1e-7, (0.8, 0.9))


def test_roles_can_be_overridden_by_pattern() -> None:
    optimizer = optim.create("muon", Transformer(), roles={"lm_head.*": "matrix", "mlp.weight": "head"})
    hidden = [names for names, g in zip(named(optimizer), optimizer.param_groups, strict=True) if g["use_muon"]]
    assert set().union(*hidden) == {"attn.weight", "lm_head.weight"}


def test_muon_splits_a_module_and_a_list() -> None:
    model = Transformer()
    split = optim.Muon(model)
    assert named(split)[0] == {"attn.weight", "mlp.weight"}
    with_names = optim.Muon(model.named_parameters())
    assert named(with_names)[0] == {"attn.weight", "mlp.weight"}
    bare = optim.Muon(model.parameters())  # no names, no roles: only the number of dimensions counts
    assert [len(group["params"]) for group in bare.param_groups] == [4, 4]
    assert [group["use_muon"] for group in bare.param_groups] == [True, False]


def test_muon_groups_keep_what_they_carry() -> None:
    a, b = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    groups = [{"params": [a], "use_muon": True, "lr": 0.5}, {"params": [b], "use_muon": False, "lr": 0.25, "eps": 1e-3}]
    first, second = optim.Muon(groups, aux_lr=1.0, aux_weight_decay=0.125).param_groups
    assert (first["lr"], second["lr"], second["eps"], second["weight_decay"]) == (0.5, 0.25, 1e-3, 0.125)


def test_a_scheduler_drives_the_lr_of_every_group() -> None:
    a, b = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
    optimizer = optim.Muon([a, b], lr=0.5, aux_lr=0.25)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 1.0)
    for p in (a, b):
        p.grad = torch.ones_like(p)
    optimizer.step()
    scheduler.step()
    before = a.detach().clone(), b.detach().clone()
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("name", optim.names())
def test_create_builds_every_method(name: str) -> None:
    model = Transformer()
    optimizer = optim.create(name, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.slug == name
