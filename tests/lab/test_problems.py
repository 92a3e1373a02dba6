"""Built-in problems and loading one's own."""

import textwrap

import pytest
import torch

from polyak.lab import problems
from polyak.lab.builtin import stdlib_lm
from polyak.lab.errors import BadInput
from polyak.lab.problems import BUILTIN, Problem, load
from polyak.lab.train import execute

SIZES = {"digits-cnn": 21_546, "digits-vit": 18_154, "rosenbrock": 2, "illconditioned": 128, "stdlib-lm": 1_067_776}


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_problems_train_and_evaluate(name):
    problem = load(name).problem
    assert problem.name == name and problem.target is not None
    setting = {"lr": 1e-2, "execution": "eager"}
    outcome = execute(problem, "adamw", setting, 1, "test", steps=2 if name == "stdlib-lm" else 20)
    assert outcome.status == "finished", outcome.detail
    assert outcome.detail["parameters"] == SIZES[name]
    losses = [loss for _, loss in outcome.detail["train"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["digits-cnn", "stdlib-lm"])
def test_a_seed_decides_model_and_batches(name):
    problem = load(name).problem
    for seed in (1, 2):
        one, two = next(problem.train_batches(seed)), next(problem.train_batches(seed))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(next(problem.train_batches(1))[0], next(problem.train_batches(2))[0])


def test_digits_are_split_without_overlap():
    from polyak.lab.builtin.digits import SIZES as sizes
    from polyak.lab.builtin.digits import _splits

    splits = _splits()
    assert {name: len(labels) for name, (_, labels) in splits.items()} == sizes
    assert sum(sizes.values()) == 1797
    images = torch.cat([images for images, _ in splits.values()])
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no image twice, so none in two splits


def test_stdlib_files_are_in_one_split_each():
    splits = stdlib_lm.files()
    names = [path for paths in splits.values() for path in paths]
    assert len(names) == len(set(names))
    assert all(len(paths) > 5 for paths in splits.values())
    assert not any("test" in path.parts or "site-packages" in path.parts for path in names)


def test_rosenbrock_and_illconditioned_have_their_minimum():
    rosenbrock, bowl = load("rosenbrock").problem, load("illconditioned").problem
    model = rosenbrock.build_model(0)
    with torch.no_grad():
        model.point.copy_(torch.ones(2))
        assert rosenbrock.loss(model, None).item() == 0
        model.point.copy_(torch.tensor([-1.0, 2.0]))
        assert rosenbrock.loss(model, None).item() == 104
        quadratic = bowl.build_model(0)
    values = [torch.func.hessian(lambda w: _at(bowl, quadratic, w))(quadratic.point.detach())]
    spectrum = torch.linalg.eigvalsh(values[0].reshape(128, 128))
    assert (spectrum[-1] / spectrum[0]).item() == pytest.approx(1e4, rel=1e-6)


def _at(problem, model, weight):
    class Point(type(model)):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.point = weight

    return problem.loss(Point(), None)


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
