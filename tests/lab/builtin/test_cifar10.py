"""CIFAR-10 from small files in both of its formats, the pickles as Python 2 wrote them."""

import pickle
import struct

import numpy as np
import pytest
import torch
from torch import nn

from polyak.lab.errors import BadInput
from polyak.lab.problems import load
from polyak.lab.train import execute

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ROWS = 30


def records(number):
    """Pictures whose first pixel is their number and whose brightness follows the class."""
    labels = [(number + row) % 10 for row in range(ROWS)]
    noise = np.random.default_rng(number).integers(0, 20, (ROWS, 3072))
    pictures = (noise + 23 * np.array(labels)[:, None]).astype(np.uint8)
    pictures[:, 0], pictures[:, 1] = number, range(ROWS)
    return pictures, labels


def short(text):
    """A string of Python 2 in a pickle."""
    return b"U" + bytes([len(text)]) + text


def python2(pictures, labels):
    """A batch, opcode by opcode as Python 2.7 and an old NumPy wrote them."""
    rows, columns = (b"M" + struct.pack("<H", size) for size in pictures.shape)
    raw = pictures.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    )
    array += b"(K\x01" + rows + columns + b"\x86" + kind + b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = short(b"batch_label") + short(b"training batch 1 of 5")
    entries += short(b"labels") + numbers + short(b"data") + array
    return b"\x80\x02}(" + entries + b"u."


def python3(pictures, labels):
    return pickle.dumps({b"data": pictures, b"labels": labels}, protocol=2)


def binary(pictures, labels):
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pictures, strict=True))


FORMATS = {"python2": (python2, ""), "python3": (python3, ""), "binary": (binary, ".bin")}


@pytest.fixture
def write(tmp_path):
    """Writes a folder in a format; ``changes`` are other contents of files."""

    def write(format="python2", **changes):
        encode, suffix = FORMATS[format]
        for number, name in enumerate(NAMES):
            content = changes.get(name, encode(*records(number)))
            if content is not None:
                (tmp_path / (name + suffix)).write_bytes(content)
        return f"cifar10:{tmp_path}"

    return write


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 32, 32)
        self.seen += [tuple(picture.flatten()[:2].tolist()) for picture in pictures]
        return torch.zeros(len(pictures), 10)


@pytest.mark.parametrize("format", FORMATS)
def test_every_picture_is_read_and_is_in_one_split(write, format):
    problem = load(write(format)).problem
    spies = {split: Spy() for split in ("train", "validation", "test")}
    for split in ("validation", "test"):
        problem.evaluate(spies[split], split)
    for seed in range(9):
        for batch in problem.train_batches(seed):
            problem.loss(spies["train"], batch)
    assert sorted(spies["test"].seen) == [(5, row) for row in range(ROWS)]
    training = {(number, row) for number in range(5) for row in range(ROWS)}
    assert len(spies["validation"].seen) == 15
    assert set(spies["train"].seen) == training - set(spies["validation"].seen)


def test_both_formats_are_the_same_data_and_it_learns(tmp_path, write):
    one = load(write("python2")).problem
    for name in NAMES:
        (tmp_path / name).unlink()
    two = load(write("binary")).problem
    for a, b in zip(next(iter(one.train_batches(1))), next(iter(two.train_batches(1))), strict=True):
        assert torch.equal(a, b)
    outcome = execute(two, "adamw", {"lr": 1e-2, "execution": "eager"}, 1, "test", steps=60)
    assert outcome.status == "finished" and outcome.metric > 0.5


def test_planes_of_colour_come_row_by_row(write):
    pictures = np.arange(ROWS * 3072).reshape(ROWS, 3072).astype(np.uint8)
    problem = load(write("binary", **{name: binary(pictures, records(0)[1]) for name in NAMES})).problem
    picture = next(iter(problem.train_batches(1)))[0][0]
    assert int(picture[1, 2, 3]) == (int(picture[0, 0, 0]) + 1024 + 2 * 32 + 3) % 256


class Evil:
    def __reduce__(self):
        return print, ("a pickle ran this",)


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("python2", None, "lacks data_batch_3$"),
        ("binary", None, "lacks data_batch_3.bin$"),
        ("python2", b"", "no batch of CIFAR-10: Ran out of input"),
        ("python2", python2(*records(1))[:5000], "data_batch_3' is no batch of CIFAR-10: pickle data was truncated"),
        ("python2", b"hello\nthere", "data_batch_3' is no batch of CIFAR-10: "),
        ("python2", pickle.dumps(Evil()), "it asks for builtins.print"),
        ("python2", pickle.dumps([1]), "it holds list instead of dict"),
        ("python2", pickle.dumps({"fine_labels": [1], "data": b""}), "it has no labels"),
        (
            "python3",
            python3(np.zeros((2, 3072), np.uint8), [1, 2, 3]),
            r"data must be 3 x 3072 bytes, got uint8 of shape",
        ),
        ("python3", python3(np.zeros((1, 3072), np.uint8), [10]), "labels must be from 0 to 9, but '.*3' has 10"),
        ("python2", python2(np.zeros((0, 3072), np.uint8), []), "data_batch_3' is empty"),
        ("binary", b"", "data_batch_3.bin' is empty"),
        ("binary", bytes(5000), "5000 bytes are not whole records of 3073"),
        ("binary", b"\x63" + bytes(3072), "labels must be from 0 to 9, but '.*3.bin' has 99"),
    ],
)
def test_files_that_are_no_batch(write, capfd, format, content, message):
    with pytest.raises(BadInput, match=message) as caught:
        load(write(format, data_batch_3=content))
    assert "\n" not in str(caught.value)
    assert "a pickle ran this" not in capfd.readouterr().out


def test_one_class_and_few_pictures(write):
    pictures = np.zeros((30, 3072), np.uint8)
    with pytest.raises(BadInput, match=r"needs at least two classes; all pictures of '.*' are of class 7$"):
        load(write("binary", **{name: binary(pictures, [7] * 30) for name in NAMES}))
    with pytest.raises(BadInput, match=r"at least 40 pictures for training; '.*' gives 9"):
        load(write("binary", **{name: binary(pictures[:2], [7, 8]) for name in NAMES}))


def test_a_folder_without_batches(tmp_path):
    with pytest.raises(BadInput, match=r"needs the folder of data_batch_1 \(or data_batch_1.bin\); '.*' is not it$"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(BadInput, match=r"did you mean cifar10:.*/cifar-10-batches-py\?$"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"'.*/file' is not it$"):
        load(f"cifar10:{tmp_path / 'file'}")
