"""The text of the standard library, in small batches and in large ones."""

from polyak.lab.builtin import stdlib_lm
from polyak.lab.problems import load


def test_stdlib_files_are_in_one_split_each():
    splits = stdlib_lm.files()
    names = [path for paths in splits.values() for path in paths]
    assert len(names) == len(set(names))
    assert all(len(paths) > 5 for paths in splits.values())
    assert not any("test" in path.parts or "site-packages" in path.parts for path in names)


def test_large_batches_are_eight_times_as_large():
    small, large = load("stdlib-lm").problem, load("stdlib-lm-large-batch").problem
    shapes = [next(problem.train_batches(1)).shape for problem in (small, large)]
    assert shapes == [(8, 129), (64, 129)]
