"""Optimizers of polyak, of other libraries and the user's own, under the same rules."""

import functools
import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn

from polyak import optim
from polyak.declare import Choice, Range
from polyak.lab.contenders import resolve, state_bytes
from polyak.lab.entries import entries, text_of
from polyak.lab.errors import BadInput

MINE = """
import torch
from scale import FACTOR

def make(params, lr, momentum=0.9):
    return torch.optim.SGD(params, lr=FACTOR * lr, momentum=momentum)

make.space = {"lr": "1e-3:1:log", "momentum": "0.8,0.9"}

def bare(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr)

def whole(model, lr=0.1):
    return torch.optim.SGD(model.named_parameters(), lr=lr)

class Half(torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr / 2, weight_decay=weight_decay)

class Ours(__import__("polyak").optim.AdamW):
    pass

def nothing(params, lr=0.1):
    return None

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "scale", raising=False)
    (tmp_path / "scale.py").write_text("FACTOR = 2\n")
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    return tmp_path


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def trained(contender, **setting):
    """The weights after a few steps, and the optimizer."""
    net = model()
    optimizer = contender.build(net, **setting)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()]), optimizer


@pytest.mark.parametrize(("theirs", "ours"), [("AdamW", "adamw"), ("SGD", "sgd"), ("Adam", "adam")])
def test_torch_s_own_stands_beside_ours_under_the_same_rules(theirs, ours):
    foreign, own = resolve(f"torch.optim.{theirs}"), resolve(ours)
    assert foreign.space == own.space
    assert {name: foreign.defaults[name] for name in own.space} == {name: own.defaults[name] for name in own.space}
    setting = {name: d.values[0] if isinstance(d, Choice) else d.high for name, d in own.space.items()}
    (there, optimizer), (here, _) = trained(foreign, **setting), trained(own, **setting)
    torch.testing.assert_close(there, here)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay == (setting["weight_decay"] if p.ndim > 1 else 0) for p, decay in decays.items())


def test_state_bytes_are_measured_alike():
    for theirs, ours in (("torch.optim.AdamW", "adamw"), ("torch.optim.SGD", "sgd")):
        more = {"momentum": 0.9} if ours == "sgd" else {}
        _, foreign = trained(resolve(theirs), lr=0.1, **more)
        _, own = trained(resolve(ours), lr=0.1, **more)
        assert state_bytes(foreign) == state_bytes(own) == own.state_bytes() > 0
    nested = type("Nested", (), {"state": {"p": {"a": [torch.zeros(3), torch.zeros(2)], "n": 1}, "x": torch.zeros(1)}})
    assert state_bytes(nested()) == 24
    assert state_bytes(object()) == 0


def test_the_user_s_own_functions_and_classes(folder):
    make = resolve("mine.py:make")
    assert make.name == "mine.py:make" and make.reference == f"{folder / 'mine.py'}:make"
    assert make.space == {"lr": Range(1e-3, 1.0), "momentum": Choice((0.8, 0.9))}
    assert make.defaults == {"momentum": 0.9} and make.taken == ("lr", "momentum")
    assert make.build(model(), lr=0.1).param_groups[0]["lr"] == 0.2
    assert resolve(make.reference) == make
    assert len(resolve("mine.py:whole").build(model()).param_groups[0]["param_names"]) == 4
    assert [len(group["params"]) for group in resolve("mine.py:Half").build(model()).param_groups] == [2, 2]
    ours = resolve("mine.py:Ours")
    assert ours.space == resolve("adamw").space and isinstance(ours.build(model()), optim.AdamW)
    with pytest.raises(TypeError, match=r"mine.py:nothing must give an optimizer, .* got None"):
        resolve("mine.py:nothing").build(model())


def test_choices_that_no_store_can_keep_are_refused(folder):
    code = "import torch\nfrom polyak.declare import Choice\ndef make(params, lr=1, dtype=None): ...\n"
    space = "make.space = {'dtype': Choice((torch.float32, torch.bfloat16))}"
    (folder / "typed.py").write_text(code + space)
    with pytest.raises(BadInput, match=r"space\['dtype'\]: torch.float32 cannot be kept; a value is a number"):
        entries(["typed.py:make"])
    (folder / "typed.py").write_text(code + "make.space = {'dtype': Choice((None, ('a', 1, True)))}")
    assert len(entries(["typed.py:make"])) == 1


def test_classes_and_functions_are_found_by_their_names(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    sys.path.insert(0, str(folder))
    mine = importlib.import_module("mine")
    found = {
        "torch.optim.AdamW": torch.optim.AdamW,
        "sgd": optim.get("sgd"),
        f"{folder / 'mine.py'}:make": mine.make,
        f"{folder / 'mine.py'}:Half": mine.Half,
    }
    assert {text_of(method): method for method in found.values()} == found
    assert [c.name for c in entries([mine.make, "sgd", mine.make])] == ["mine.py:make", "sgd"]
    for local in (functools.partial(mine.make, lr=1.0), lambda params: None, folder.exists):
        with pytest.raises(BadInput, match="is known to this process alone; define it at the top of a file"):
            text_of(local)


def test_a_space_for_the_whole_file(folder):
    with open("mine.py", "a") as file:
        file.write("\nspace = {'lr': '0.1:1'}\n")
    assert resolve("mine.py:bare").space == {"lr": Range(0.1, 1.0, log=False)}
    assert "momentum" in resolve("mine.py:make").space


def test_what_it_is_decides_its_code_not_comments(folder):
    before = resolve("mine.py:make").code
    text = (folder / "mine.py").read_text()
    marks = {}
    for name, change in {
        "comment": ("mine.py", text + "\n# a comment\n"),
        "docstring": ("mine.py", text.replace("momentum=0.9):\n", 'momentum=0.9):\n    """Words."""\n')),
        "code": ("mine.py", text.replace("momentum=0.9)", "momentum=0.8)")),
        "neighbour": ("scale.py", "FACTOR = 3\n"),
    }.items():
        other = folder / name
        other.mkdir()
        for file in ("mine.py", "scale.py"):
            (other / file).write_text((folder / file).read_text())
        (other / change[0]).write_text(change[1])
        marks[name] = resolve(f"{name}/mine.py:make").code == before
    assert marks == {"comment": True, "docstring": True, "code": False, "neighbour": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adanw", ["no method is named 'adanw'", "did you mean", "adan", "torch.optim.AdamW"]),
        ("torch.optim.AdamZ", ["torch.optim has no 'AdamZ'", "did you mean", "Adam"]),
        ("torch.optm.AdamW", ["torch has no 'optm'"]),
        ("timmm.optim.Lamb", ["there is no module 'timmm'", "install it"]),
        ("mine.py:mak", ["mine.py has no 'mak'", "did you mean make"]),
        ("mien.py:make", ["cannot read the method's file", "did you mean mine.py"]),
        ("mine.py:number", ["is int", "a class or a function"]),
        ("broken.py:make", ["broken.py raised ZeroDivisionError", "line 2 of"]),
        ("needs.py:make", ["needs.py raised ModuleNotFoundError", "nowhere_at_all"]),
    ],
)
def test_what_cannot_be_found_is_one_line(folder, text, words):
    (folder / "broken.py").write_text("\n1 / 0\n")
    (folder / "needs.py").write_text("import nowhere_at_all\n")
    with pytest.raises(BadInput) as caught:
        resolve(text)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)


class TestEntries:
    """What --space and --fix make of them."""

    def test_space_and_fix_reach_all_that_have_the_argument(self, folder):
        adamw, sgd, torchs = entries(
            ["adamw", "sgd", "torch.optim.AdamW"],
            ["lr=1e-3:1e-2:log", "torch.optim.AdamW.lr=1e-5:1e-4:log", "sgd.momentum=0.5,0.6"],
            ["weight_decay=0.01", "sgd.nesterov=True"],
        )
        assert adamw.space == {"lr": Range(1e-3, 1e-2)} and adamw.fixed == {"weight_decay": 0.01}
        assert torchs.space == {"lr": Range(1e-5, 1e-4)}
        assert sgd.space == {"lr": Range(1e-3, 1e-2), "momentum": Choice((0.5, 0.6))}
        assert sgd.fixed == {"weight_decay": 0.01, "nesterov": True}
        assert sgd.build(model(), lr=0.1, momentum=0.5).param_groups[0]["nesterov"] is True

    def test_names_are_distinct(self, folder):
        (folder / "other").mkdir()
        (folder / "other" / "mine.py").write_text((folder / "mine.py").read_text())
        found = entries(["mine.py:make", "other/mine.py:make", "mine.py:make"])
        assert [contender.name for contender in found] == ["mine.py:make", "mine.py:make (2)"]

    @pytest.mark.parametrize(
        ("methods", "spaces", "fixes", "words"),
        [
            ([], [], [], ["at least one problem and one method"]),
            (["mine.py:bare"], [], [], ["does not say where to look", "--space mine.py:bare.lr=", "arguments: lr"]),
            (["adamw"], ["rl=0:1"], [], ["no argument 'rl'", "lr"]),
            (["adamw"], ["sgd.lr=0:1"], [], ["'sgd' is none of the methods", "adamw"]),
            (["sgd"], ["momentum=0.5:2"], [], ["sgd refuses", "momentum must be in [0, 1), got 2", "--space"]),
            (["torch.optim.AdamW"], ["lr=-1:1"], [], ["torch.optim.AdamW refuses", "Invalid learning rate: -1"]),
            (["sgd"], [], ["momentum=0"], ["sgd refuses", "nesterov needs momentum > 0"]),
            (["sgd"], ["momentum=0.1,0.2"], ["momentum=0.3"], ["contradict each other"]),
            (["sgd"], ["sgd.momentum=0.1,0.2"], ["momentum=0.3"], ["contradict each other"]),
            (["torch.optim.LBFGS"], [], [], ["does not say where to look"]),
        ],
    )
    def test_contradictions_are_one_line(self, folder, methods, spaces, fixes, words):
        with pytest.raises(BadInput) as caught:
            entries(methods, spaces, fixes)
        assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
        assert "\n" not in str(caught.value)

    def test_what_is_all_fixed_needs_no_space(self, folder):
        (bare,) = entries(["mine.py:bare"], [], ["lr=0.1"])
        assert bare.space == {} and bare.fixed == {"lr": 0.1}

    def test_every_torch_space_is_accepted_by_its_optimizer(self):
        from polyak.lab.space import TORCH

        entries([f"torch.optim.{name}" for name in TORCH])
