"""The vocabulary: rules to chain. Made by tools/make_lists.py from the files; not edited by hand."""

from polyak.optim.methods.adabelief import adabelief
from polyak.optim.methods.adan import adan
from polyak.optim.methods.adatam import adatam
from polyak.optim.methods.ademamix import ademamix
from polyak.optim.methods.alphaadam import selective
from polyak.optim.methods.grams import grams
from polyak.optim.methods.lion import lion
from polyak.optim.methods.sgd_sai import scaled_at_start
from polyak.optim.methods.step import preconditioned_adam
from polyak.optim.methods.tam import torque_aware
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.ano import ano
from polyak.optim.vocabulary.balls import heavy_ball, momentum_ema
from polyak.optim.vocabulary.convex import subgradient
from polyak.optim.vocabulary.lines import level
from polyak.optim.vocabulary.matrices import orthogonalize
from polyak.optim.vocabulary.scale_free import clip_norm, project
from polyak.optim.vocabulary.signs import cautious
from polyak.optim.vocabulary.sparse import sr_ste
from polyak.optim.vocabulary.trust import trust
from polyak.optim.vocabulary.weight import decay, descend, subtract, times_lr

__all__ = [
    "adabelief",
    "adam",
    "adan",
    "adatam",
    "ademamix",
    "ano",
    "cautious",
    "clip_norm",
    "decay",
    "descend",
    "grams",
    "heavy_ball",
    "level",
    "lion",
    "momentum_ema",
    "orthogonalize",
    "preconditioned_adam",
    "project",
    "scaled_at_start",
    "selective",
    "sr_ste",
    "subgradient",
    "subtract",
    "times_lr",
    "torque_aware",
    "trust",
]
