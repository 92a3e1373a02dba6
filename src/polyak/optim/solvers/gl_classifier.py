"""Semi-supervised classification by the Ginzburg-Landau energy on a graph of nearest neighbours."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Self

from polyak.declare import Interval
from polyak.optim.solvers.gl_fista import GLFISTA
from polyak.optim.solvers.laplacians import LARGEST_DENSE, kernel, knn_laplacian, nearest

UNLABELLED = -1


class GLClassifier(GLFISTA):
    """A few labels and many points: labels spread over a graph of nearest neighbours, by :class:`GLFISTA`.

    An estimator as scikit-learn's ``LabelSpreading``: ``fit(X, y)`` with -1 for what has no label, then
    ``transduction_`` holds the class of every point of X, ``classes_`` the classes, ``field_`` the minimum (one column
    a class, or one field for two classes), ``n_iter_`` the number of steps. Two classes are -1 and 1; more are told one
    from the rest. ``predict`` gives a new point the mean field of its nearest neighbours, weighted as the graph is,
    which is no part of the paper. Takes arrays or tensors, and returns what it was given.
    """

    _: KW_ONLY
    neighbors: Annotated[int, Interval(1, 10**6), "edges from each point of the graph"] = 10

    def fit(self, X: Any, y: Any) -> Self:
        """Find the classes of all points.

        Args:
            X: (n, d), finite.
            y: (n) integers, -1 where a label is missing; at least two classes.

        Raises:
            ValueError: points or labels that do not fit; says why.
        """
        points, labels = _floating(X), torch.as_tensor(y)
        if labels.shape != points.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"y must be {len(points)} integers, got {labels.dtype} of shape {tuple(labels.shape)}")
        known = labels.unique()
        classes = known[known != UNLABELLED]
        if len(classes) < 2:
            raise ValueError(f"y must have at least 2 classes besides {UNLABELLED}, got {classes.tolist()}")
        labelled = (labels != UNLABELLED).nonzero()[:, 0]
        own = labels[labelled]
        targets = own[:, None] == classes if len(classes) > 2 else own == classes[1]
        laplacian = knn_laplacian(points, self.neighbors, sparse=len(points) > LARGEST_DENSE)
        found = self.minimize(laplacian, labelled.to(points.device), 2.0 * targets.to(points) - 1)
        _, _, reach = nearest(points, points, self.neighbors + 1)
        self._fitted = points, found.u, reach, classes
        self.energies_, self.n_iter_ = found.energies, found.last.step
        self.classes_, self.field_ = _as_given(classes, X), _as_given(found.u, X)
        self.transduction_ = _as_given(self._class(found.u), X)
        return self

    def predict(self, X: Any) -> Any:
        """The classes of new points.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: points of other dimensions than those fitted.
        """
        if "_fitted" not in self.__dict__:
            raise RuntimeError("GLClassifier.predict() needs fit() first")
        points, u, reach, _ = self._fitted
        new = _floating(X).to(points)
        if new.shape[1:] != points.shape[1:]:
            raise ValueError(f"X must have {points.shape[1]} columns, got shape {tuple(new.shape)}")
        near, distances, last = nearest(new, points, self.neighbors)
        weights = kernel(distances, last[:, None], reach[near])
        return _as_given(self._class((weights.view(*weights.shape, *[1] * (u.ndim - 1)) * u[near]).sum(1)), X)

    def score(self, X: Any, y: Any) -> float:
        """The share of points whose class is predicted."""
        return float((torch.as_tensor(self.predict(X)) == torch.as_tensor(y)).double().mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in self._fields}

    def set_params(self, **params: Any) -> Self:
        """Change arguments; all are checked before one changes."""
        values = type(self)(**{**self.get_params(), **params})
        for name in params:
            setattr(self, name, getattr(values, name))
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks an estimator: this is a classifier."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())

    def _class(self, u: Tensor) -> Tensor:
        classes: Tensor = self._fitted[3]
        return classes[u.argmax(1)] if u.ndim == 2 else classes[(u > 0).long()]


def _floating(x: Any) -> Tensor:
    found = torch.as_tensor(x)
    return found if found.is_floating_point() else found.double()


def _as_given(found: Tensor, given: Any) -> Any:
    """A tensor where one was given, else an array."""
    return found if isinstance(given, Tensor) else found.cpu().numpy()
