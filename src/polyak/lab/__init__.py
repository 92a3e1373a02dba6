"""Compare methods on a problem with equal tuning budgets: the room behind ``polyak compare``."""

from polyak.lab.comparison import compare, plan
from polyak.lab.described import Described
from polyak.lab.errors import BadInput, LabError
from polyak.lab.problems import Problem
from polyak.lab.report import Report
from polyak.lab.results import Results, write_report

__all__ = [
    "BadInput",
    "Described",
    "LabError",
    "Problem",
    "Report",
    "Results",
    "compare",
    "plan",
    "write_report",
]
