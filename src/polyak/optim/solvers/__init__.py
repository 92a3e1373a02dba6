"""Solvers: methods that need more than a gradient a step, such as closures, Hessians or several losses."""

from polyak.optim.solvers.aggregators import SAMGS, Aggregator, CAGrad, PCGrad
from polyak.optim.solvers.bo_rep import BORep
from polyak.optim.solvers.compressors import Compressor, Contractive, Identity, Natural, RandK, TopK, Unbiased
from polyak.optim.solvers.masha import MASHA1, MASHA2
from polyak.optim.solvers.multitask import multitask_backward

__all__ = [
    "MASHA1",
    "MASHA2",
    "SAMGS",
    "Aggregator",
    "BORep",
    "CAGrad",
    "Compressor",
    "Contractive",
    "Identity",
    "Natural",
    "PCGrad",
    "RandK",
    "TopK",
    "Unbiased",
    "multitask_backward",
]
