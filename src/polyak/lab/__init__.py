"""Compare methods on a problem with equal tuning budgets: the room behind ``polyak compare``."""

from polyak.lab.comparison import compare, fit, plan, run, write_report
from polyak.lab.errors import BadInput, LabError
from polyak.lab.loops import StopRun
from polyak.lab.problem import Problem
from polyak.lab.report import Report

__all__ = ["BadInput", "LabError", "Problem", "Report", "StopRun", "compare", "fit", "plan", "run", "write_report"]
