"""The handwritten digits, with right labels, wrong labels and several questions."""

import math

import pytest
import torch
from torch.nn import functional as F

from polyak.lab.builtin import digits
from polyak.lab.problems import load


def test_digits_are_split_without_overlap():
    splits = digits.splits()
    assert {name: len(labels) for name, (_, labels) in splits.items()} == digits.SIZES
    assert sum(digits.SIZES.values()) == 1797
    images = torch.cat([images for images, _ in splits.values()])
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no image twice, so none in two splits


def labels_by_image(problem):
    """What an epoch or three teach about each image."""
    taught = {}
    for seed in range(3):
        for images, labels in problem.train_batches(seed):
            taught |= {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    return taught


def test_just_the_share_of_wrong_labels_is_wrong():
    images, labels = digits.splits()["train"]
    noisy = digits.mislabelled(labels)
    assert (noisy != labels).sum().item() == round(0.3 * 1077) == 323
    assert noisy.min() == 0 and noisy.max() == 9
    wrong = noisy[noisy != labels].bincount(minlength=10)
    assert wrong.min() > 15  # every digit is taken for others
    right = {image.numpy().tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    taught = labels_by_image(load("noisy-digits").problem)
    assert len(taught) > 1050
    assert {image: right[image] for image in taught} != taught
    again = labels_by_image(load("noisy-digits").problem)
    assert taught == again


def test_noise_is_in_the_training_labels_alone():
    clean, noisy = load("digits-cnn").problem, load("noisy-digits").problem
    torch.manual_seed(0)
    model = clean.build_model(0).eval()
    with torch.no_grad():
        for split in ("validation", "test"):
            assert clean.evaluate(model, split) == noisy.evaluate(model, split)


def test_the_answers_of_the_heads():
    image = torch.zeros(3, 1, 8, 8)
    image[0, 0, 3, 0] = 1  # ink on the left
    image[1, 0, 3, 7] = 1  # and on the right
    assert digits.answers(image, torch.tensor([3, 8, 0])).tolist() == [[3, 1, 1], [8, 0, 0], [0, 0, 0]]


def test_the_summed_loss_and_the_mean_accuracy():
    outputs = torch.zeros(2, 14)
    outputs[:, 10] = 1.0  # both are held to be even
    targets = torch.tensor([[0, 0, 0], [5, 1, 0]])
    parity = F.cross_entropy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])).item()
    task = digits.SEVERAL_CLASSES
    assert task.loss(outputs, targets).item() == pytest.approx(math.log(10) + parity + math.log(2))
    assert task.scores(outputs, targets).tolist() == pytest.approx([1.0, 1 / 3])


def test_no_head_is_solved_by_a_constant():
    _, labels = digits.splits()["validation"]
    images, _ = digits.splits()["validation"]
    answers = digits.answers(images, labels)
    for head, classes in enumerate(digits.HEADS.values()):
        assert answers[:, head].bincount(minlength=classes).max() < 0.7 * len(labels)
