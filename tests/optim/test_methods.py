"""Methods as declared classes: what users see of them, subclasses of users, and a method that is one new file."""

import copy
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import nn

import polyak.optim
from polyak.declare import UNIT, Lr
from polyak.optim import SGD, AdamW, Adan, CLion, Lion, Method, Muon, Optimizer, chain, rules
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.optimizer import Optimizer as Engine
from polyak.optim.engine.rule import Options

ROOT = Path(__file__).parents[2]
ALL = polyak.optim.names()


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (2, 2)))


class Plain(AdamW):
    pass


class Scaled(AdamW):
    """AdamW whose lr is scaled."""

    scale: Annotated[float, UNIT, "factor on lr"] = 0.5
    eps = 1e-6

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return super().recipe(options)


class Wrapped(Scaled):
    def __init__(self, params: Any, lr: float, name: str = "mine") -> None:
        super().__init__(params, lr, scale=0.25)
        self.name = name


@pytest.mark.parametrize("name", ALL)
def test_signature_and_docs_say_every_argument(name: str) -> None:
    method = polyak.optim.get(name)
    parameters = inspect.signature(method).parameters
    assert next(iter(parameters)) == "params"
    assert set(parameters) >= {h.name for h in method.arguments} | {"execution", "maximize", "check_finite"}
    for hyper in method.arguments:
        assert parameters[hyper.name].default == hyper.default == getattr(method, hyper.name)
        assert hyper.doc, f"{name}: {hyper.name} says nothing"
    text = inspect.getdoc(method) or ""
    assert all(re.search(rf"^ +{argument}: ", text, re.M) for argument in parameters), text
    assert method.equation and all(line in text for line in method.equation.splitlines())


@pytest.mark.parametrize("name", ALL)
def test_every_memory_says_what_it_holds_and_how_it_may_be_kept(name: str) -> None:
    exact = {"previous_grad", "displacement", "lead", "skipped", "mask"}
    for slot, _ in polyak.optim.get(name).memories():
        assert slot.holds, slot.name
        squares = slot.name.endswith(("_sq", "_var"))
        is_whole = slot.name in exact or slot.shape == "scalar" or callable(slot.shape)
        assert slot.average == (None if is_whole else "positive" if squares else "signed"), slot.name


@pytest.mark.parametrize("name", ALL + polyak.optim.names(layered=True))
def test_what_verifies_a_method_is_what_its_vectors_were_recorded_from(name: str) -> None:
    method = polyak.optim.get(name)
    recorded = [v for v in method.vectors if not v.startswith("torch.optim.")]
    sources = [json.loads((ROOT / "tests" / "vectors" / f"{v}.json").read_text())["source"] for v in recorded]
    foreign = [s for s in sources if not re.match(r"own\b|written from the spec card", s, re.I)]
    by_peers = all(re.match(r"(torch|timm|optax|pytorch_optimizer)==|.*INDEPENDENT", s) for s in foreign)
    if method.evidence == "the authors' code":
        assert foreign and not by_peers, sources
    elif method.evidence == "independent code":
        assert foreign or len(recorded) < len(method.vectors), sources
    else:
        assert not foreign, sources


def test_every_method_is_in_one_family() -> None:
    families = polyak.optim.families()
    assert sorted(name for own in families.values() for name in own) == sorted(ALL + polyak.optim.names(layered=True))
    assert "other" not in families


def test_memories_of_options_that_are_off_are_named_with_them() -> None:
    kept = {slot.name: condition for slot, condition in AdamW.memories()}
    assert kept == {"exp_avg": "", "exp_avg_sq": "", "max_exp_avg_sq": "amsgrad=True"}
    assert {slot.name: condition for slot, condition in SGD.memories()} == {"momentum_buffer": "momentum > 0"}
    assert [c for _, c in Muon.memories()] == ["", "other groups", "other groups"]


def test_methods_take_what_the_engine_takes() -> None:
    keywords = [p.name for p in inspect.signature(Engine.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [n for n, p in inspect.signature(AdamW).parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert known == keywords


@pytest.mark.parametrize("name", ["lr", "betas", "weight_decay", "maximize", "params"])
def test_a_hyperparameter_of_an_optimizer_is_read_in_its_groups(name: str) -> None:
    optimizer = AdamW([param()], lr=0.5)
    assert not hasattr(optimizer, name)
    with pytest.raises(AttributeError, match=f"AdamW has no attribute '{name}'.*optimizer.param_groups"):
        getattr(optimizer, name)
    with pytest.raises(AttributeError, match=r"optimizer\.param_groups"):
        setattr(optimizer, name, 0.1)
    optimizer.execution = "eager"
    assert optimizer.execution == "eager" and optimizer.check_finite is False


def test_a_misspelt_argument_is_told_its_name() -> None:
    with pytest.raises(TypeError, match=r"AdamW has no argument 'weight_decai'; did you mean 'weight_decay'"):
        AdamW([param()], weight_decai=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="two values for 'lr'"):
        AdamW([param()], 0.1, lr=0.1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="AdamW needs params"):
        AdamW()  # type: ignore[call-arg]


def test_arguments_by_position() -> None:
    (group,) = AdamW([param()], 0.1, (0.8, 0.9), 1e-6, 0.3, True).param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-6)
    assert (group["weight_decay"], group["amsgrad"]) == (0.3, True)


@pytest.mark.parametrize(
    "make", [lambda p: Plain([p], lr=0.1), lambda p: Scaled([p], 0.1, scale=0.75), lambda p: Wrapped([p], 0.1, "x")]
)
def test_subclasses_of_users(make: Any) -> None:
    p, q = param(), param()
    optimizer, plain = make(p), AdamW([q], lr=0.1, eps=1e-8 if make(p).__class__ is Plain else 1e-6)
    scale = optimizer.param_groups[0].get("scale")
    for _ in range(2):
        p.grad, q.grad = torch.full((2, 2), 0.3), torch.full((2, 2), 0.3)
        optimizer.step()
        plain.step()
    assert torch.equal(p, q)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(twin) is type(optimizer) and twin.param_groups[0].get("scale") == scale
        assert torch.equal(twin.state[twin.param_groups[0]["params"][0]]["exp_avg"], optimizer.state[p]["exp_avg"])


def test_a_group_has_the_new_field_of_a_subclass() -> None:
    assert Scaled([param()]).param_groups[0]["scale"] == 0.5
    assert Wrapped([param()], 0.1).param_groups[0]["scale"] == 0.25
    with pytest.raises(ValueError, match=r"Scaled: scale must be in \[0, 1\], got 2.0"):
        Scaled([param()], scale=2.0)


def test_a_variant_inherits_and_changes() -> None:
    inherited = {h.name: h for h in Lion.arguments}
    for hyper in CLion.arguments:
        if hyper.name in inherited and hyper.name != "betas":
            assert hyper == inherited[hyper.name]
    assert CLion.betas == (0.95, 0.98) and Lion.betas == (0.9, 0.99)
    assert [h.name for h in CLion.arguments][: len(inherited)] == list(inherited)


def test_free_chains_take_the_defaults_of_their_rules() -> None:
    (group,) = Optimizer([param()], chain(rules.lion(), rules.descend()), lr=0.1).param_groups
    assert group["betas"] == Lion.betas
    (group,) = Optimizer([param()], chain(rules.adan(), rules.descend())).param_groups
    assert (group["betas"], group["eps"], group["lr"]) == (Adan.betas, Adan.eps, 1e-3)


def test_a_warning_points_at_the_line_of_the_mistake() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Lion([param()], betas=(0.99, 0.9))
    assert [w.filename for w in caught] == [__file__]


def test_a_method_without_a_name_of_its_own() -> None:
    class Bare(Method):
        lr: Lr = 0.1

        @classmethod
        def recipe(cls, options: Options) -> Chain:
            return chain(rules.descend())

    p = param()
    p.grad = torch.ones(2, 2)
    Bare([p]).step()
    assert torch.equal(p.detach(), torch.full((2, 2), 0.9))


NEW_METHOD = '''
"""Signum: the sign of momentum."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import Lr, Momentum, Paper, Range
from polyak.memory.averages import ema
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.weight import descend


@factory
def signum() -> Rule:
    """The sign of an average of the gradient: ``m <- momentum * m + (1 - momentum) * g; u = sign(m)``."""

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"rate": 1 - h["momentum"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        m = ema(s.momentum_buffer, x.u, c.rate)
        return x.but(u=torch.sign(m)), {"momentum_buffer": m}

    slots = (Slot("momentum_buffer", "average of the gradient", "signed"),)
    return Rule("signum", update, scalars, slots, Signum.reads("momentum"))


class Signum(Method):
    """Signum (Bernstein et al., arXiv:1802.04434).

    ::

        m <- momentum * m + (1 - momentum) * g
        p <- p - lr * sign(m)
    """

    slug = "signum"
    paper = Paper("signSGD: Compressed Optimisation for Non-Convex Problems", 2018, "1802.04434")
    vectors = ["signum"]

    lr: Annotated[Lr, Range(1e-5, 1e-2)] = 1e-4
    momentum: Momentum = 0.9

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(signum(), descend())
'''

USE = """
import sys
import numpy as np, torch
sys.path.insert(0, {tools!r})
import make_catalogue
import polyak.optim
from polyak.optim import Signum, create, rules
from polyak.optim.rules import signum

assert polyak.optim.get("signum") is Signum and "signum" in polyak.optim.names()
print(make_catalogue.section("signum"))
starts, gradients = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
for execution in ("eager", "batched"):
    p, m, w = torch.nn.Parameter(torch.tensor(starts[0])), 0.0, starts[0]
    optimizer = create("signum", [p], lr=0.1, execution=execution)
    for g in gradients:
        m = 0.9 * m + 0.1 * g
        w = w - 0.1 * np.sign(m)
        p.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12)
"""


def run(*arguments: str, source: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_a_new_method_is_one_file(tmp_path: Path) -> None:
    """Into a copy of the package; the tool lists it, its class, rule, page and steps are there."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src" / "polyak" / "optim"
    lists = str(ROOT / "tools" / "make_lists.py")
    assert run(lists, "--check", "--package", str(package), source=tmp_path / "src").returncode == 0
    (package / "methods" / "signum.py").write_text(NEW_METHOD.lstrip())
    assert run(lists, "--check", "--package", str(package), source=tmp_path / "src").returncode == 1
    assert run(lists, "--package", str(package), source=tmp_path / "src").returncode == 0
    used = run("-c", USE.format(tools=str(ROOT / "tools")), source=tmp_path / "src")
    assert used.returncode == 0, used.stderr
    for words in (
        "p <- p - lr * sign(m)",
        "`momentum_buffer`: average of the gradient",
        "| `momentum` | `0.9` | [0, 1)",
    ):
        assert words in used.stdout


def test_a_file_that_is_no_method_is_refused_by_the_tool(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "polyak" / "optim", tmp_path / "optim")
    (tmp_path / "optim" / "methods" / "other.py").write_text(NEW_METHOD.lstrip())
    refused = run(str(ROOT / "tools" / "make_lists.py"), "--package", str(tmp_path / "optim"), source=ROOT / "src")
    assert refused.returncode == 1 and "must have one class with slug = 'other'" in refused.stderr


TYPED = """
import torch
from polyak.declare import Lr
from polyak.optim import AdamW, CLion, Method, Muon, create

model = torch.nn.Linear(2, 2)
AdamW(model.parameters())
AdamW(model.named_parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.1, True, execution="eager")
AdamW([{"params": list(model.parameters()), "lr": 0.1}], weight_decay=0.1, maximize=True)
CLion(model.parameters(), 1e-4, (0.9, 0.99), 0.0, False, "mean", opposed=0.5)
Muon(model, 0.02, adjust_lr=None, aux_lr=1e-3, split_sizes=[1, 1])
create("lion", model, lr=1e-4).step()


class Mine(AdamW):
    gamma: Lr = 0.5


Mine(model.parameters(), gamma=0.1)
AdamW()  # E: call-arg
AdamW(model.parameters(), lr="fast")  # E: arg-type
AdamW(model.parameters(), weight_decai=0.1)  # E: call-arg
AdamW(model.parameters(), betas=(0.9, 0.99, 0.999))  # E: arg-type
AdamW(model.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.1, True, "eager")  # E: call-arg
AdamW(model.parameters(), execution="fast")  # E: arg-type
AdamW(model)  # E: arg-type
CLion(model.parameters(), mask_scale="median")  # E: arg-type
Mine(model.parameters(), delta=0.1)  # E: call-arg
"""


@pytest.mark.slow
def test_mypy_knows_the_arguments(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(TYPED)
    told = run("-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(snippet), source=ROOT / "src")
    found = {
        (int(line.split(":")[1]), line.rstrip("]").rpartition("[")[2])
        for line in told.stdout.splitlines()
        if "snippet.py" in line and ": error:" in line
    }
    wanted = {(i, line.split("# E: ")[1]) for i, line in enumerate(TYPED.splitlines(), 1) if "# E: " in line}
    assert found == wanted, told.stdout + told.stderr
