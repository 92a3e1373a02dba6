"""Solvers: methods that need more than a gradient a step, such as closures, Hessians or linear systems."""

from polyak.optim.solvers.dbf_newton import Belief, DBFNewton, filter_step

__all__ = ["Belief", "DBFNewton", "filter_step"]
