"""Loading problems."""

import textwrap

import pytest

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
    text = problems.__doc__.split("::\n", 1)[1].split("\nand is compared", 1)[0]
    return textwrap.dedent(text)


def test_the_documented_example(write):
    loaded = load(write(documented_example()))
    assert isinstance(loaded.problem, Problem) and loaded.problem.name == "line"
    outcome = execute(loaded.problem, "adamw", {"lr": 0.03}, 1, "test", loaded.problem.steps)
    assert outcome.status == "finished" and outcome.metric < 0.05


def test_a_changed_file_is_another_problem(write):
    first = load(write(documented_example()))
    assert load(write(documented_example())).digest == first.digest
    assert load(write(documented_example() + "\n")).digest != first.digest


def test_neighbours_of_the_file_can_be_imported(write):
    write("NAME = 'from the neighbour'", "neighbour_of_train.py")
    reference = write("import neighbour_of_train\n" + documented_example().replace('"line"', "neighbour_of_train.NAME"))
    assert load(reference).problem.name == "from the neighbour"


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


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_problem_checks_itself(steps):
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        Problem("x", print, print, print, print, "loss", False, steps)
    with pytest.raises(TypeError, match="loss must be callable, got 3"):
        Problem("x", print, print, 3, print, "loss", False, 10)


def test_solved():
    made = {"build_model": print, "train_batches": print, "loss": print, "evaluate": print, "metric": "m", "steps": 1}
    up, down = (Problem("x", higher_is_better=h, target=0.5, **made) for h in (True, False))
    assert [up.solved(v) for v in (0.4, 0.5, 0.6, float("nan"))] == [False, True, True, False]
    assert [down.solved(v) for v in (0.4, 0.5, 0.6, float("nan"))] == [True, True, False, False]
    assert not Problem("x", higher_is_better=True, **made).solved(1.0)
