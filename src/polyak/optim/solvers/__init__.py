"""Solvers: methods that need more than a gradient a step, such as closures, Hessians or several losses."""

from polyak.optim.solvers.aggregators import SAMGS, Aggregator, CAGrad, PCGrad
from polyak.optim.solvers.bo_rep import BORep
from polyak.optim.solvers.compressors import Compressor, Contractive, Identity, Natural, RandK, TopK, Unbiased
from polyak.optim.solvers.dbf_newton import Belief, DBFNewton, filter_step
from polyak.optim.solvers.gl_classifier import GLClassifier
from polyak.optim.solvers.gl_fista import GLFISTA, Energy, Iterate, Minimum
from polyak.optim.solvers.laplacians import Graph, Grid, Laplacian, knn_laplacian
from polyak.optim.solvers.masha import MASHA1, MASHA2
from polyak.optim.solvers.multitask import multitask_backward

__all__ = [
    "GLFISTA",
    "MASHA1",
    "MASHA2",
    "SAMGS",
    "Aggregator",
    "BORep",
    "Belief",
    "CAGrad",
    "Compressor",
    "Contractive",
    "DBFNewton",
    "Energy",
    "GLClassifier",
    "Graph",
    "Grid",
    "Identity",
    "Iterate",
    "Laplacian",
    "Minimum",
    "Natural",
    "PCGrad",
    "RandK",
    "TopK",
    "Unbiased",
    "filter_step",
    "knn_laplacian",
    "multitask_backward",
]
