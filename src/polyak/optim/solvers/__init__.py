"""Solvers: methods that need more than a gradient a step, such as closures, Hessians or several losses."""

from polyak.optim.solvers.aggregators import SAMGS, Aggregator, CAGrad, PCGrad
from polyak.optim.solvers.bo_rep import BORep
from polyak.optim.solvers.multitask import multitask_backward

__all__ = ["SAMGS", "Aggregator", "BORep", "CAGrad", "PCGrad", "multitask_backward"]
