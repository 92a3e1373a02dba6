"""Solvers: methods that need more than a gradient a step, such as closures, Hessians or linear systems."""

from polyak.optim.solvers.dbf_newton import Belief, DBFNewton, filter_step
from polyak.optim.solvers.gl_classifier import GLClassifier
from polyak.optim.solvers.gl_fista import GLFISTA, Energy, Iterate, Minimum
from polyak.optim.solvers.laplacians import Graph, Grid, Laplacian, knn_laplacian

__all__ = [
    "GLFISTA",
    "Belief",
    "DBFNewton",
    "Energy",
    "GLClassifier",
    "Graph",
    "Grid",
    "Iterate",
    "Laplacian",
    "Minimum",
    "filter_step",
    "knn_laplacian",
]
