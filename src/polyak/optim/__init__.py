"""Optimizers, and the rules that they are chained from.

Use a method by its class (``polyak.optim.Adan(model.parameters())``) or by name (``polyak.optim.create("adan",
model)``); write your own with ``Optimizer(params, chain(...))`` and the vocabulary in :mod:`polyak.optim.rules`.
"""

from polyak.optim import rules
from polyak.optim.adabelief import AdaBelief
from polyak.optim.adamp import SGDP, AdamP
from polyak.optim.adan import Adan
from polyak.optim.ademamix import AdEMAMix
from polyak.optim.cautious import CSGDM, CAdamW, CAdan, CLion
from polyak.optim.classic import SGD, Adam, AdamW
from polyak.optim.context import Context, Flow
from polyak.optim.create import create, get, names
from polyak.optim.engine import Optimizer
from polyak.optim.grams import Grams
from polyak.optim.groups import roles_of
from polyak.optim.lion import Lion
from polyak.optim.muon import Muon
from polyak.optim.rule import Chain, Rule, Slot, chain, factory
from polyak.optim.spec import Choice, Hyper, Interval, Paper, Range
from polyak.optim.switch import switch
from polyak.optim.tam import TAM, AdaTAM, AdaTAMW

__all__ = [
    "CSGDM",
    "SGD",
    "SGDP",
    "TAM",
    "AdEMAMix",
    "AdaBelief",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamP",
    "AdamW",
    "Adan",
    "CAdamW",
    "CAdan",
    "CLion",
    "Chain",
    "Choice",
    "Context",
    "Flow",
    "Grams",
    "Hyper",
    "Interval",
    "Lion",
    "Muon",
    "Optimizer",
    "Paper",
    "Range",
    "Rule",
    "Slot",
    "chain",
    "create",
    "factory",
    "get",
    "names",
    "roles_of",
    "rules",
    "switch",
]
