"""Parameter groups: roles of weights, what is decayed, and which go to Muon's two parts."""

from typing import Any

import pytest
import torch
from torch import nn

from polyak.optim import AdamW, Muon, create, get, names, roles_of
from tests.optim.training import OPTIONS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)


class Transformer(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.position_embedding = nn.Parameter(torch.zeros(5, 8))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 11)
        if tied:
            self.out.weight = self.tokens.weight


HIDDEN = {f"blocks.{i}.{name}.weight" for i in range(2) for name in ("up", "down", "attention.out_proj")}
HIDDEN |= {f"blocks.{i}.attention.in_proj_weight" for i in range(2)}


def named(group: dict[str, Any]) -> set[str]:
    return set(group["param_names"])


def test_roles_of_a_transformer() -> None:
    roles = roles_of(Transformer())
    assert {n for n, role in roles.items() if role == "matrix"} == HIDDEN
    assert {n for n, role in roles.items() if role == "embedding"} == {"tokens.weight", "position_embedding"}
    assert {n for n, role in roles.items() if role == "head"} == {"out.weight"}
    assert all(role == "vector" for n, role in roles.items() if n.endswith("bias") or "norm" in n)


def test_a_tied_head_is_an_embedding_and_appears_once() -> None:
    model = Transformer(tied=True)
    assert roles_of(model)["tokens.weight"] == "embedding" and "out.weight" not in roles_of(model)
    groups = create("muon", model).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


def test_roles_can_be_told() -> None:
    roles = roles_of(Transformer(), {"blocks.1.*": "head", "blocks.*.up.weight": "embedding", "out.*": "matrix"})
    assert roles["blocks.1.up.weight"] == "head" and roles["blocks.0.up.weight"] == "embedding"  # the first match wins
    assert roles["out.weight"] == "matrix"


def test_other_models() -> None:
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 10)
    )
    roles = roles_of(convolutions)
    assert roles["0.weight"] == roles["2.weight"] == "matrix" and roles["4.weight"] == "head"
    assert roles["1.weight"] == "vector"
    assert roles_of(nn.Linear(3, 2)) == {"weight": "matrix", "bias": "vector"}  # alone, it is what there is to train
    named_head = nn.ModuleDict({"classifier": nn.Linear(3, 2), "body": nn.Linear(3, 3), "last": nn.Linear(3, 3)})
    assert roles_of(named_head)["classifier.weight"] == "head"


def test_frozen_weights_are_left_out() -> None:
    model = Transformer()
    model.tokens.requires_grad_(False)
    assert "tokens.weight" not in roles_of(model)
    assert all("tokens.weight" not in named(g) for g in create("adamw", model).param_groups)


def test_vectors_are_not_decayed() -> None:
    model = Transformer()
    decayed, rest = create("adamw", model, weight_decay=0.3).param_groups
    assert decayed["weight_decay"] == 0.3 and rest["weight_decay"] == 0.0
    shapes = dict(model.named_parameters())
    assert named(decayed) == {n for n, p in shapes.items() if p.ndim > 1}
    assert named(rest) == {n for n, p in shapes.items() if p.ndim < 2}


def test_decay_of_all() -> None:
    (group,) = create("adamw", Transformer(), weight_decay=0.3, no_decay_1d=False).param_groups
    assert group["weight_decay"] == 0.3 and len(group["params"]) == len(list(Transformer().parameters()))
    decayed, rest = create("adamw", Transformer()).param_groups
    assert decayed["weight_decay"] == AdamW([nn.Parameter(torch.ones(1))]).param_groups[0]["weight_decay"]
    assert rest["weight_decay"] == 0.0


def test_what_is_not_a_module_is_taken_as_it_is() -> None:
    model = Transformer()
    optimizer = create("lion", [{"params": model.parameters(), "lr": 0.5}], lr=0.1, weight_decay=0.2)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.5 and group["weight_decay"] == 0.2 and len(group["params"]) == len(list(model.parameters()))


def test_muon_of_a_module_three_ways() -> None:
    model = Transformer()
    by_module, by_name = Muon(model).param_groups, create("muon", model).param_groups
    for groups in (by_module, by_name):
        hidden = [g for g in groups if g["use_muon"]]
        assert {n for g in hidden for n in named(g)} == HIDDEN
    by_names = Muon(model.named_parameters()).param_groups  # names only: the last Linear is not known to be the head
    assert named(by_names[0]) == HIDDEN | {"out.weight", "tokens.weight"}
    bare = Muon(model.parameters()).param_groups  # not even names: only dimensions count
    assert all(p.ndim > 1 for p in bare[0]["params"]) and all(p.ndim < 2 for p in bare[1]["params"])


def test_auxiliary_arguments_fill_auxiliary_groups() -> None:
    model = Transformer()
    options: dict[str, Any] = {"lr": 0.5, "weight_decay": 0.4, "aux_lr": 0.05, "aux_betas": (0.7, 0.8), "aux_eps": 1e-3}
    matrices, rest = Muon(model, **options, aux_weight_decay=0.04).param_groups
    assert (matrices["lr"], matrices["weight_decay"]) == (0.5, 0.4)
    assert (rest["lr"], rest["weight_decay"], rest["betas"], rest["eps"]) == (0.05, 0.04, (0.7, 0.8), 1e-3)
    own = Muon([{"params": [nn.Parameter(torch.ones(2))], "use_muon": False, "lr": 0.9}], **options)
    assert own.param_groups[0]["lr"] == 0.9 and own.param_groups[0]["betas"] == (0.7, 0.8)


def test_decay_of_muon_groups() -> None:
    """In a module's groups the decay given is for every tensor of two dimensions or more, in either part."""
    groups = create("muon", Transformer(), weight_decay=0.3).param_groups
    decays = {name: g["weight_decay"] for g in groups for name in named(g)}
    for name, p in Transformer().named_parameters():
        assert decays[name] == (0.3 if p.ndim > 1 else 0.0), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_scheduler_scales_every_group(name: str) -> None:
    model = Transformer()
    optimizer = create(name, model, **({"lr": 0.2, "aux_lr": 0.02} if name == "muon" else {"lr": 0.2}))
    start = [group["lr"] for group in optimizer.param_groups]
    assert set(start) == ({0.2, 0.02} if name == "muon" else {0.2})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (t + 1))
    frozen = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * len(start)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)), "lr 0 moves nothing"
    frozen.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [lr / 2 for lr in start]


def test_a_model_trains() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 10), torch.randint(0, 3, (64,))
    for name, lr in (("adamw", 1e-2), ("muon", 5e-2), ("lion", 5e-3)):
        net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
        optimizer = create(name, net, lr=lr)
        for _ in range(80):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.5, name


COMMON = [name for name in names() if get(name).one_for_all]


@pytest.mark.parametrize("name", COMMON)
def test_what_is_one_for_all_and_is_written_into_one_group_is_refused_by_the_step(name: str) -> None:
    params = [nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = get(name)([{"params": [p]} for p in params], **OPTIONS.get(name, {}))
    reads = {"loss": 1.0} if "loss" in optimizer.chain_of(optimizer.param_groups[0]).named else {}

    def step() -> list[torch.Tensor]:
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step(**reads)
        return [p.detach().clone() for p in params]

    before = step()
    for option in optimizer.one_for_all:
        kept = optimizer.param_groups[1][option]
        optimizer.param_groups[1][option] = "another"
        with pytest.raises(ValueError, match=f"{type(optimizer).__name__}: {option} must be the same in all groups"):
            step()
        assert all(map(torch.equal, before, params))
        optimizer.param_groups[1][option] = kept
    assert not all(map(torch.equal, before, step()))
