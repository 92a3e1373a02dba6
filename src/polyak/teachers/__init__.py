"""Models that follow other models: averages of weights as teachers, their schedules, and what is built on them.

:class:`EMA` is the machinery: any schedule, several averages in one pass, updates on real optimizer steps only,
swapping for evaluation, checkpoints that go on bit for bit. :class:`Queue` and the losses are for contrast with keys.
"""

from polyak.teachers.batchnorm import update_bn
from polyak.teachers.ema import EMA
from polyak.teachers.hard_negatives import HardNegativeMoCo, hard_negatives
from polyak.teachers.losses import (
    info_nce,
    info_nce_logits,
    multi_positive_info_nce,
    soft_cross_entropy,
    soft_targets,
)
from polyak.teachers.moco import MoCo, MoCoOutput, projection_head
from polyak.teachers.posthoc import reconstruct
from polyak.teachers.queue import Queue
from polyak.teachers.schedules import Constant, Cosine, Debiased, HalfLife, Power, Ramp, Schedule, Uniform, Warmup

__all__ = [
    "EMA",
    "Constant",
    "Cosine",
    "Debiased",
    "HalfLife",
    "HardNegativeMoCo",
    "MoCo",
    "MoCoOutput",
    "Power",
    "Queue",
    "Ramp",
    "Schedule",
    "Uniform",
    "Warmup",
    "hard_negatives",
    "info_nce",
    "info_nce_logits",
    "multi_positive_info_nce",
    "projection_head",
    "reconstruct",
    "soft_cross_entropy",
    "soft_targets",
    "update_bn",
]
