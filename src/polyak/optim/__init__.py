"""Optimizers, and the rules that they are chained from.

Use a method by its class (``polyak.optim.Adan(model.parameters())``) or by name (``polyak.optim.create("adan",
model)``); write your own with ``Optimizer(params, chain(...))`` and the vocabulary in :mod:`polyak.optim.rules`.
"""

from polyak.declare import Choice, Hyper, Interval, Paper, Range
from polyak.optim import rules
from polyak.optim.create import create, get, names
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.engine.rule import Chain, Rule, Slot, chain, factory
from polyak.optim.groups import roles_of
from polyak.optim.methods.adabelief import AdaBelief
from polyak.optim.methods.adamp import SGDP, AdamP
from polyak.optim.methods.adan import Adan
from polyak.optim.methods.ademamix import AdEMAMix
from polyak.optim.methods.cautious import CSGDM, CAdamW, CAdan, CLion
from polyak.optim.methods.classic import SGD, Adam, AdamW
from polyak.optim.methods.grams import Grams
from polyak.optim.methods.lion import Lion
from polyak.optim.methods.muon import Muon
from polyak.optim.methods.tam import TAM, AdaTAM, AdaTAMW
from polyak.optim.switch import switch

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
