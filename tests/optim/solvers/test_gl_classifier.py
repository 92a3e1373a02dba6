"""The classifier finds clouds from a few labels, as an estimator of scikit-learn does."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.model_selection import cross_val_score

from polyak.optim.solvers import GLClassifier
from tests.optim.solvers.graphs import two_clouds


def clouds(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points around the corners of a polygon, their classes, and those of the first ones of each alone."""
    rng = np.random.default_rng(0)
    classes = np.arange(30 * count) % count + 5
    angle = 2 * np.pi * classes / count
    points = 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(size=(30 * count, 2))
    known = np.where(np.arange(30 * count) < 2 * count, classes, -1)
    return points, classes, known


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_labels_are_enough(count: int) -> None:
    points, classes, known = clouds(count)
    found = GLClassifier(neighbors=8).fit(points, known)
    assert isinstance(found.transduction_, np.ndarray)
    assert (found.transduction_ == classes).all()
    assert found.classes_.tolist() == sorted(set(classes.tolist()))
    assert found.field_.shape == ((30 * count,) if count == 2 else (30 * count, count))
    assert found.n_iter_ == len(found.energies_) - 1
    assert (found.predict(points + 0.05) == classes).all()
    assert found.score(points, classes) == 1.0


def test_tensors_give_tensors() -> None:
    points, side = two_clouds()
    points[:, 0] *= 2
    known = torch.where(torch.arange(60) < 4, side, -1)
    found = GLClassifier(neighbors=8).fit(points, known)
    assert torch.equal(found.transduction_, side)
    assert torch.equal(found.predict(points[:5]), side[:5])


def test_scikit_learn_takes_it_for_one_of_its_own() -> None:
    points, classes, _ = clouds(3)
    estimator = GLClassifier(epsilon=0.8, neighbors=6)
    assert clone(estimator).get_params() == estimator.get_params()
    assert is_classifier(estimator)
    assert cross_val_score(estimator, points, classes, cv=3).min() == 1.0


def test_parameters_are_checked_before_one_changes() -> None:
    estimator = GLClassifier()
    assert estimator.set_params(tau=2.0, momentum=0.5) is estimator
    assert (estimator.tau, estimator.momentum) == (2.0, 0.5)
    with pytest.raises(ValueError, match="epsilon must be in"):
        estimator.set_params(tau=3.0, epsilon=-1.0)
    with pytest.raises(TypeError, match="no argument 'sigma'"):
        estimator.set_params(sigma=1.0)
    assert estimator.tau == 2.0


POINTS, _, KNOWN = clouds(2)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (POINTS, KNOWN[:-1], r"y must be 60 integers, got torch.int64 of shape \(59,\)"),
        (POINTS, KNOWN.astype(float), "integers, got torch.float64"),
        (POINTS, np.full(60, -1), r"at least 2 classes besides -1, got \[\]"),
        (POINTS, np.where(KNOWN == 5, 5, -1), r"at least 2 classes besides -1, got \[5\]"),
        (POINTS * np.nan, KNOWN, "finite floating matrix"),
        (POINTS[:, 0], KNOWN, "finite floating matrix"),
        (POINTS[:10], KNOWN[:10], r"neighbors must be in 1..9, got 10"),
    ],
)
def test_what_cannot_be_fitted(x: Any, y: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLClassifier().fit(x, y)


def test_what_cannot_be_predicted() -> None:
    with pytest.raises(RuntimeError, match=r"needs fit\(\) first"):
        GLClassifier().predict(POINTS)
    with pytest.raises(ValueError, match=r"2 columns, got shape \(60, 1\)"):
        GLClassifier().fit(POINTS, KNOWN).predict(POINTS[:, :1])
