"""Loading problems."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from polyak.lab import problems
from polyak.lab.errors import BadInput
from polyak.lab.problems import Problem, load
from polyak.lab.train import execute


@pytest.fixture
def write(tmp_path):
    def write(text, name="train.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return f"{tmp_path / name}:problem"

    return write


def documented_example() -> str:
    """The code in the module's docstring, so that what users copy is what is tested."""
    text = problems.__doc__.split("    # train.py", 1)[1].split("\nA run is made again", 1)[0]
    return "# train.py" + textwrap.dedent(text)


def test_the_documented_example(write):
    loaded = load(write(documented_example()))
    assert isinstance(loaded.problem, Problem) and loaded.problem.name == "line"
    outcome = execute(loaded.problem, "adamw", {"lr": 0.03}, 1, "test", loaded.problem.steps)
    assert outcome.status == "finished" and outcome.metric < 0.05


@pytest.mark.parametrize("method", ["adamw", "sgd", "torch.optim.RMSprop"])
def test_the_documented_loop_runs_with_any_method(write, method):
    loop = textwrap.dedent(problems.__doc__.split("::\n\n", 1)[1].split("\n``make_optimizer", 1)[0])
    parts = """
from polyak.lab import Problem
from torch import nn

build_model = lambda: nn.Linear(2, 1)
accuracy = lambda model, split: 0.5

def train_one_step(model, optimizer):
    optimizer.step()
    return 1.0
"""
    loaded = load(write(parts + loop))
    outcome = execute(loaded.problem, method, {"lr": 0.03}, 1, "test", None)
    assert (outcome.status, outcome.metric, len(outcome.detail["validation"])) == ("finished", 0.5, 10)


def test_a_script_that_reads_its_command_line_finds_an_empty_one(write, monkeypatch):
    command = ["polyak", "compare", "--trials", "3"]
    monkeypatch.setattr(sys, "argv", command)
    read = (
        "\nimport argparse, sys\nassert argparse.ArgumentParser().parse_args() and sys.argv[0].endswith('train.py')\n"
    )
    text = documented_example() + read
    text += "made = problem\ndef problem():" + read.replace("\n", "\n    ") + "return made()"
    assert load(write(text)).problem.name == "line"
    assert sys.argv is command


def test_a_changed_file_is_another_problem(write):
    first = load(write(documented_example()))
    assert load(write(documented_example())).digest == first.digest
    words = documented_example().replace("0.05", "0.06").replace("# train", "# my train")
    assert load(write(words)).digest == first.digest
    assert load(write(documented_example().replace("steps=200", "steps=201"))).digest != first.digest


def test_neighbours_of_the_file_can_be_imported(write):
    write("NAME = 'from the neighbour'", "neighbour_of_train.py")
    reference = write("import neighbour_of_train\n" + documented_example().replace('"line"', "neighbour_of_train.NAME"))
    before = load(reference)
    assert before.problem.name == "from the neighbour"
    write("# a remark\nNAME = 'from the neighbour'", "neighbour_of_train.py")
    assert load(reference).digest == before.digest
    write("NAME = 'from another one'", "neighbour_of_train.py")
    assert load(reference).digest != before.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def problem(): return 3", "must return a polyak.lab.Problem, got int"),
        ("def problem(): pass", "must return a polyak.lab.Problem, got NoneType"),
        ("def problems(): pass", "has no function 'problem'; did you mean problems?"),
        ("def problem():\n    raise KeyError('data')", r"raised KeyError: 'data' \(line 2 of .*train.py\)"),
        ("def problem(:", "raised SyntaxError"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_files_that_make_no_problem(write, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        load(write(text))
    assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(BadInput, match="unknown problem 'digits-cn'; did you mean digits-cnn"):
        load("digits-cn")
    with pytest.raises(BadInput, match=r"unknown problem 'zzz'; known: digits-cnn, .*path/to/file.py:function"):
        load("zzz")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("cifar", "unknown problem 'cifar'; did you mean cifar10"),
        ("cifar10", "cifar10 needs the folder cifar-10-batches-py or cifar-10-batches-bin: cifar10:path/to/it"),
        ("textfile:", "textfile needs a text file: textfile:path/to/it"),
        ("textfile:nowhere/a.txt", "textfile: there is no '/.*/nowhere/a.txt'; name a text file"),
        ("digits-cnn:data", "unknown problem 'digits-cnn:data'; did you mean digits-cnn"),
    ],
)
def test_references_to_data(reference, message):
    with pytest.raises(BadInput, match=message) as caught:
        load(reference)
    assert "\n" not in str(caught.value)


def test_data_are_found_wherever_a_worker_runs(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("To be or not to be. " * 1000)
    (tmp_path / "other.txt").write_text("To be or not to be. " * 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load("textfile:book.txt")
    assert loaded.reference == f"textfile:{tmp_path / 'book.txt'}" and loaded.problem.name == "textfile:book.txt"
    assert load("textfile:~/book.txt") == load(loaded.reference) == loaded
    assert load("textfile:other.txt").digest != loaded.digest


def test_unknown_files(write, tmp_path):
    write("", "training.py")
    with pytest.raises(BadInput, match=r"No such file or directory; did you mean training.py"):
        load(f"{tmp_path}/trainng.py:problem")
    with pytest.raises(BadInput, match="No such file or directory"):
        load(f"{tmp_path}/nowhere/train.py:problem")


WORDS = {"name": "x", "metric": "loss", "higher_is_better": False}
PARTS = {"build_model": print, "train_batches": print, "loss": print, "evaluate": print, "steps": 10}


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None])
def test_a_problem_needs_its_steps(steps):
    with pytest.raises(ValueError, match="Problem 'x': steps must be a positive integer, got"):
        Problem(**WORDS, **{**PARTS, "steps": steps})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss must be callable, got 3"),
        ({"evaluate": None}, TypeError, "evaluate must be callable, got None"),
        ({"name": ""}, ValueError, "name must be a text that is not empty, got ''"),
        ({"metric": None}, ValueError, "metric must be a text that is not empty, got None"),
        ({"higher_is_better": "yes"}, ValueError, "higher_is_better must be True or False, got 'yes'"),
        ({"target": float("nan")}, ValueError, "target must be a finite number or None, got nan"),
        ({"target": "0.9"}, ValueError, "target must be a finite number or None, got '0.9'"),
        ({"schedule": "linear"}, ValueError, "schedule must be a function .* or one of .*'onecycle'.*, got 'linear'"),
        ({"clip": 0}, ValueError, "clip must be a positive number or None, got 0"),
        ({"accumulation": 0}, ValueError, "accumulation must be a positive integer, got 0"),
        ({"evaluate_every": 0.5}, ValueError, "evaluate_every must be a positive integer or None, got 0.5"),
        ({"train": print}, ValueError, "beside which build_model, train_batches, loss, evaluate does nothing"),
    ],
)
def test_a_problem_checks_itself(change, error, message):
    with pytest.raises(error, match=message):
        Problem(**{**WORDS, **PARTS, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": 3}, TypeError, "train must be callable, got 3"),
        (
            {"clip": 1.0, "device": "cpu"},
            ValueError,
            "train= brings its own loop, beside which clip, device does nothing",
        ),
        ({"steps": 0}, ValueError, "steps must be a positive integer or None, got 0"),
    ],
)
def test_a_problem_with_a_loop_of_its_own_checks_itself(change, error, message):
    with pytest.raises(error, match=message):
        Problem(**{**WORDS, "train": print, **change})


def test_the_steps_of_a_run():
    assert Problem(**WORDS, **PARTS).run_steps(None) == 10
    assert Problem(**WORDS, **PARTS).run_steps(7) == 7
    assert Problem(**WORDS, train=print).run_steps(None) is None
    with pytest.raises(BadInput, match="steps=7 cannot be kept, its train function decides"):
        Problem(**WORDS, train=print).run_steps(7)


def test_solved():
    up, down = (Problem(**{**WORDS, "higher_is_better": h}, **PARTS, target=0.5) for h in (True, False))
    assert [up.solved(v) for v in (0.4, 0.5, 0.6, float("nan"))] == [False, True, True, False]
    assert [down.solved(v) for v in (0.4, 0.5, 0.6, float("nan"))] == [True, True, False, False]
    assert not Problem(**WORDS, **PARTS).solved(1.0)


def test_a_new_target_is_looked_for_in_the_stored_curve():
    detail = {"validation": [[10, 0.9], [20, None], [30, 0.4]], "timing": {"validation_seconds": [1.0, 2.0, 3.0]}}

    def met(target):
        found = Problem(**WORDS, **PARTS, target=target).with_target(detail)
        return found["target_step"], found["timing"]["target_seconds"]

    assert [met(target) for target in (1.0, 0.5, 0.1, None)] == [(10, 1.0), (30, 3.0), (None, None), (None, None)]
    assert Problem(**WORDS, **PARTS).with_target({"error": "none"}) == {"error": "none"}


def test_loading_seeds_and_leaves_the_generators_alone(write):
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    text = documented_example().replace("import torch\n", "import random, numpy, torch\n", 1)
    drawn = 'f"{random.random()} {numpy.random.rand()} {torch.rand(1).item()}"'
    names = {load(write(text.replace('"line"', drawn))).problem.name for _ in range(2)}
    assert len(names) == 1
    assert torch.rand(1).item() == expected


SCRIPT = (
    documented_example()
    + """
from pathlib import Path
from polyak.lab import plan, run
run(plan([__file__ + ":problem"], ["sgd"], 1, 1), Path("runs.db"), 1)
raise AssertionError("it went on")
"""
)


def test_a_file_that_goes_on_to_compare_is_loaded_up_to_there(write):
    assert load(write(SCRIPT)).problem.name == "line"


def test_two_folders_may_have_a_module_of_the_same_name(tmp_path):
    found = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "shared_name.py").write_text(f"NAME = {place!r}")
        text = "import shared_name\n" + documented_example().replace('"line"', "shared_name.NAME")
        (tmp_path / place / "train.py").write_text(text)
        found.append(load(f"{tmp_path / place}/train.py:problem").problem.name)
    assert found == ["one", "two"]


def test_the_page_on_scripts_says_what_the_example_says():
    root = Path(__file__).parents[2]
    script, page = (root / "examples/compare_script.py").read_text(), (root / "docs/compare.md").read_text()
    rows = re.findall(r"^\| \d \| `(.*)` \| `(.*)` \|$", page, re.MULTILINE)
    assert len(rows) == script.count("# changed; was: ") <= 5
    for before, now in rows:
        assert f"{now}  # changed; was: {before}\n" in script
    assert load(f"{root}/examples/compare_script.py:problem").problem.name == "my digits"
