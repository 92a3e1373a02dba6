"""Compare methods on a problem with equal tuning budgets: the room behind ``polyak compare``."""

from polyak.lab.comparison import compare, fit, run
from polyak.lab.described import Described
from polyak.lab.errors import BadInput, LabError
from polyak.lab.loops import StopRun
from polyak.lab.places import Places
from polyak.lab.planning import plan
from polyak.lab.problem import Problem
from polyak.lab.report import Report
from polyak.lab.results import Results, write_report

__all__ = [
    "BadInput",
    "Described",
    "LabError",
    "Places",
    "Problem",
    "Report",
    "Results",
    "StopRun",
    "compare",
    "fit",
    "plan",
    "run",
    "write_report",
]
