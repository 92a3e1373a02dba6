"""Folders of real pictures in several formats."""

import numpy as np
import pytest
import torch
from torch import nn

from polyak.lab.builtin import imagefolder
from polyak.lab.errors import BadInput
from polyak.lab.problems import load
from polyak.lab.train import execute

Image = pytest.importorskip("PIL.Image")
COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 20, 30)}


def picture(colour, number, size=(40, 36)):
    """A colour with noise; the number is in the red of all pixels, so that it survives resizing."""
    noise = np.random.default_rng(number).integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray((noise + np.array(colour)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(25):
            suffix = ("png", "jpg", "bmp")[number % 3]
            picture(colour, number).save(tmp_path / name / f"{number:02}.{suffix}")
    return tmp_path


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 32, 32)
        self.seen |= {each.numpy().tobytes() for each in pictures}
        return torch.zeros(len(pictures), 3)


def test_every_picture_is_in_one_split_and_each_class_in_all(folder):
    problem = load(f"imagefolder:{folder}").problem
    spies = {split: Spy() for split in ("train", "validation", "test")}
    with torch.no_grad():
        # Whoever always says the first class, as zeros do, is right for its third of the pictures.
        assert problem.evaluate(spies["validation"], "validation") == pytest.approx(1 / 3)
        assert problem.evaluate(spies["test"], "test") == pytest.approx(1 / 3)
    for batch in problem.train_batches(1):
        problem.loss(spies["train"], batch)
    assert [len(spy.seen) for spy in spies.values()] == [45, 15, 15]
    assert len(set.union(*(spy.seen for spy in spies.values()))) == 75


def test_it_learns_the_colours(folder):
    problem = load(f"imagefolder:{folder}").problem
    outcome = execute(problem, "adamw", {"lr": 1e-2, "execution": "eager"}, 1, "test", steps=20)
    assert outcome.status == "finished" and outcome.metric == 1
    assert problem.name == f"imagefolder:{folder.name}" and "75 pictures of 3 classes" in problem.description


def test_the_order_of_the_disk_does_not_matter(folder, monkeypatch):
    before = next(iter(load(f"imagefolder:{folder}").problem.train_batches(1)))
    listed = type(folder).iterdir
    monkeypatch.setattr(type(folder), "iterdir", lambda path: reversed(list(listed(path))))
    after = next(iter(load(f"imagefolder:{folder}").problem.train_batches(1)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_picture_is_cropped_to_its_middle_and_stands_upright(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48, 0] = 255  # the middle square is red
    wide[:16, :, 1] = 255  # the upper half green
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "b.png", exif=exif)
    upright, turned = imagefolder._picture(tmp_path / "a.png"), imagefolder._picture(tmp_path / "b.png")
    assert upright[0].min() == 255 and upright[2].max() == 0
    assert upright[1, :15].min() == 255 and upright[1, 17:].max() == 0
    assert torch.equal(turned, upright.flip(1))


def test_grey_and_transparent_pictures_are_read(tmp_path):
    for mode, colour in (("L", 77), ("RGBA", (77, 77, 77, 128)), ("P", 77), ("1", 1), ("CMYK", (9, 9, 9, 9))):
        file = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (50, 50), colour).save(file)
        assert imagefolder._picture(file).shape == (3, 32, 32)


def test_of_large_folders_a_part_is_read_of_each_class_alike(folder, monkeypatch):
    monkeypatch.setattr(imagefolder, "READ_AT_MOST", 69)
    assert "69 pictures of 3 classes" in load(f"imagefolder:{folder}").problem.description


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda file: file.write_bytes(b"no picture"), "cannot identify image file"),
        (lambda file: file.write_bytes(b""), "cannot identify image file"),
        (lambda file: file.write_bytes(file.read_bytes()[:1500]), "truncated"),
        (lambda file: Image.new("I;16", (9, 9)).save(file), "of mode 'I;16', not bytes"),
    ],
)
def test_an_unreadable_picture_is_named(folder, break_it, message):
    break_it(folder / "green" / "03.png")
    with pytest.raises(BadInput, match=rf"cannot read the picture '.*green/03.png': .*{message}") as caught:
        load(f"imagefolder:{folder}")
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_classes(folder, tmp_path):
    with pytest.raises(BadInput, match=r"at least two classes; '.*green' has none"):
        load(f"imagefolder:{folder / 'green'}")
    with pytest.raises(BadInput, match=r"needs a folder, but '.*03.png' is a file"):
        load(f"imagefolder:{folder / 'green' / '03.png'}")
    (folder / "yellow").mkdir()
    with pytest.raises(BadInput, match=r"at least 5 pictures \(.*\.png.*\) of each class; '.*yellow' has 0$"):
        load(f"imagefolder:{folder}")
    outer = tmp_path / "outer"
    (outer / "train").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"at least two classes; '.*outer' has only 'train'"):
        load(f"imagefolder:{outer}")
    (outer / "train" / "red").mkdir()
    (outer / "val").mkdir()
    with pytest.raises(BadInput, match=r"has 0; if its folders are the classes, name imagefolder:.*/train$"):
        load(f"imagefolder:{outer}")


def test_too_few_pictures(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            picture((9, 9, 9), number).save(tmp_path / name / f"{number}.png")
    with pytest.raises(BadInput, match=r"at least 40 pictures for training; '.*' gives 6"):
        load(f"imagefolder:{tmp_path}")
