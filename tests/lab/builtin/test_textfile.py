"""A language model on a text of the user's."""

import math

import pytest
import torch
from torch import nn

from polyak.lab.errors import BadInput
from polyak.lab.problems import load
from polyak.lab.train import execute


@pytest.fixture
def write(tmp_path):
    def write(content, name="book.txt"):
        (tmp_path / name).write_bytes(content)
        return f"textfile:{tmp_path / name}"

    return write


def text(length):
    """Each byte says in which hundredth of the text it stands."""
    return bytes(1 + 100 * place // length for place in range(length))


class Spy(nn.Module):
    """Keeps the bytes that it sees, and finds all as likely."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, tokens):
        self.seen |= set(tokens.flatten().tolist())
        return torch.zeros(*tokens.shape, 256)


def test_the_parts_of_the_text_are_apart(write):
    problem = load(write(text(100_000))).problem
    spies = {split: Spy() for split in ("train", "validation", "test")}
    assert problem.evaluate(spies["validation"], "validation") == pytest.approx(8)
    assert problem.evaluate(spies["test"], "test") == pytest.approx(8)
    batches = problem.train_batches(1)
    for _ in range(100):
        assert problem.loss(spies["train"], next(batches)).item() == pytest.approx(math.log(256))
    assert spies["train"].seen == set(range(1, 81))
    assert spies["validation"].seen == set(range(81, 91))
    assert spies["test"].seen == set(range(91, 101))


def test_it_learns(write):
    loaded = load(write("Zwölf Boxkämpfer jagen Viktor. ".encode() * 1000))
    outcome = execute(loaded.problem, "adamw", {"lr": 3e-3, "execution": "eager"}, 1, "validation", steps=20)
    assert outcome.status == "finished" and outcome.metric < 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 10,000 bytes; '.*book.txt' has 0"),
        (b"short", "at least 10,000 bytes; '.*book.txt' has 5"),
        ("in UTF-16".encode("utf-16") * 1000, "without zero bytes; '.*book.txt' has some"),
        (b"a" * 20_000, "repeats one byte, b'a'"),
    ],
)
def test_what_is_no_text(write, content, message):
    with pytest.raises(BadInput, match=message) as caught:
        load(write(content))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(BadInput, match=r"needs one text file, but '.*' is a folder"):
        load(f"textfile:{tmp_path}")
