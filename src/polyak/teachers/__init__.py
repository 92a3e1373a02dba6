"""Models that follow other models: averages of weights as teachers, their schedules, and what is built on them.

:class:`EMA` is the machinery: any schedule, several averages in one pass, updates on real optimizer steps only,
swapping for evaluation, checkpoints that go on bit for bit.
"""

from polyak.teachers.batchnorm import update_bn
from polyak.teachers.ema import EMA
from polyak.teachers.posthoc import reconstruct
from polyak.teachers.schedules import Constant, Cosine, HalfLife, Power, Ramp, Schedule, Uniform, Warmup

__all__ = [
    "EMA",
    "Constant",
    "Cosine",
    "HalfLife",
    "Power",
    "Ramp",
    "Schedule",
    "Uniform",
    "Warmup",
    "reconstruct",
    "update_bn",
]
