"""Problems that no file defines."""

import subprocess
import sys

import pytest

from polyak.lab.errors import BadInput
from polyak.lab.problems import load
from tests.lab.conftest import quadratic

# What a notebook is to Python: code in __main__ whose lines are known, and no file.
NOTEBOOK = '''
import linecache, sys
from pathlib import Path

def cell(text):
    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    exec(compile(text, name, "exec"), globals())

MODEL = """
from polyak.lab import Problem, compare, plan
from torch import nn

class Model(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.weight.data.fill_(1.0)
"""
PROBLEM = """
SIZE = 3.0

def train(make_optimizer, seed, report, split):
    model = Model()
    make_optimizer(model)
    return SIZE * seed

def problem():
    return Problem(name="carried", train=train, metric="m", higher_is_better=False)
"""
cell(MODEL)
cell(PROBLEM)
'''


def notebook(text, folder):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK + text], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_problem_of_a_notebook_is_compared(tmp_path):
    text = """
found = compare(problem, "sgd", trials=1, seeds=3, store="runs.db", workers=1)
print(*found.report.problems[0].methods[0].metrics.values())
"""
    assert notebook(text, tmp_path) == ["3.0", "6.0", "9.0"]


def test_its_digest_follows_what_it_uses(tmp_path):
    text = """
from polyak.lab.problems import load

def now():
    print(load(problem).digest)

now()
for text, new in ((PROBLEM, "target=1,"), (MODEL, ""), (MODEL, "pass")):
    cell(text.replace("name=", new + "name=").replace("fill_(1.0)", "fill_(1.0)" + new.replace("pass", " * 2")))
    now()
cell(MODEL)
now()
cell(PROBLEM.replace("3.0", "4.0"))
now()
"""
    first, target, same, other_model, back, other_size = notebook(text, tmp_path)
    assert first == target == same == back
    assert len({first, other_model, other_size}) == 3


CALLABLES = """
from functools import partial

CONFIG = {"noise": 0.1}

def body(make_optimizer, seed, report, split, epochs):
    make_optimizer(Model())
    return CONFIG["noise"] * epochs

class Trainer:
    def __init__(self, n):
        self.n = n

    def __call__(self, *_):
        return self.n

train, trainer = partial(body, epochs=3), Trainer(3)

def of_partial():
    return Problem(name="carried", train=train, metric="m", higher_is_better=False)

def of_object():
    return Problem(name="carried", train=trainer, metric="m", higher_is_better=False)
"""


def test_its_digest_follows_partials_objects_and_what_dicts_hold(tmp_path):
    text = f"""
from polyak.lab.problems import load

text = {CALLABLES!r}
changes = [("", ""), ("epochs=3", "epochs=30"), ("* epochs", "- epochs"), ("0.1", "0.5"), ("Trainer(3)", "Trainer(4)")]
for old, new in changes:
    cell(text.replace(old, new))
    print(load(of_partial).digest, load(of_object).digest)
"""
    first, first_object, *later = notebook(text, tmp_path)
    epochs, _, code, _, noise, _, trainer, other_object = later
    assert trainer == first and len({first, epochs, code, noise}) == 4
    assert later[1::2] == [first_object] * 3 + [other_object] and other_object != first_object
    assert notebook(text, tmp_path)[:2] == [first, first_object]  # in another process too


def test_a_function_of_a_file_is_that_file_s():
    loaded = load(problem)
    assert loaded.reference.endswith("test_carried.py:problem") and loaded.problem.name == "quadratic"


def problem():
    return quadratic()


def test_what_is_no_problem():
    with pytest.raises(BadInput, match="a problem is a name, a Problem or a function that returns one, got 3"):
        load(3)
