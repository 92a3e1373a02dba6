"""The published methods, one a file. Made by tools/make_lists.py from the files; not edited by hand."""

from polyak.optim.methods.adabelief import AdaBelief
from polyak.optim.methods.adam import Adam
from polyak.optim.methods.adamp import AdamP
from polyak.optim.methods.adamw import AdamW
from polyak.optim.methods.adan import Adan
from polyak.optim.methods.adaptive_braking import AdaptiveBraking
from polyak.optim.methods.adatam import AdaTAM
from polyak.optim.methods.adatamw import AdaTAMW
from polyak.optim.methods.ademamix import AdEMAMix
from polyak.optim.methods.alphaadam import AlphaAdam
from polyak.optim.methods.alr_hb import ALRHB
from polyak.optim.methods.alr_mag import ALRMAG
from polyak.optim.methods.alr_nag import ALRNAG
from polyak.optim.methods.am_adamw import AMAdamW
from polyak.optim.methods.am_sgd import AMSGD
from polyak.optim.methods.ano import Ano
from polyak.optim.methods.anoall import Anoall
from polyak.optim.methods.anolog import Anolog
from polyak.optim.methods.anosqrt import Anosqrt
from polyak.optim.methods.auon import AuON
from polyak.optim.methods.cadamw import CAdamW
from polyak.optim.methods.cadan import CAdan
from polyak.optim.methods.clion import CLion
from polyak.optim.methods.cmuon import CMuon
from polyak.optim.methods.csgdm import CSGDM
from polyak.optim.methods.delayed_nesterov import DelayedNesterov
from polyak.optim.methods.fismo import FISMO
from polyak.optim.methods.grams import Grams
from polyak.optim.methods.gsm import GSM
from polyak.optim.methods.hybrid_auon import HybridAuON
from polyak.optim.methods.lamb import LAMB
from polyak.optim.methods.lars import LARS
from polyak.optim.methods.lion import Lion
from polyak.optim.methods.lionk import LionK
from polyak.optim.methods.m3 import M3
from polyak.optim.methods.momo import MoMo
from polyak.optim.methods.momo_adam import MoMoAdam
from polyak.optim.methods.mt_dao import MTDAO
from polyak.optim.methods.muon import Muon
from polyak.optim.methods.namo import NAMO
from polyak.optim.methods.namo_d import NAMOD
from polyak.optim.methods.nl_deep import NLDeep
from polyak.optim.methods.nl_delta import NLDelta
from polyak.optim.methods.random_scaling import RandomScaling
from polyak.optim.methods.scale import SCALE
from polyak.optim.methods.sgd import SGD
from polyak.optim.methods.sgd_sai import SGDSaI
from polyak.optim.methods.sgdp import SGDP
from polyak.optim.methods.smmf import SMMF
from polyak.optim.methods.spam import SPAM
from polyak.optim.methods.stable_spam import StableSPAM
from polyak.optim.methods.step import STEP
from polyak.optim.methods.tam import TAM

__all__ = [
    "ALRHB",
    "ALRMAG",
    "ALRNAG",
    "AMSGD",
    "CSGDM",
    "FISMO",
    "GSM",
    "LAMB",
    "LARS",
    "M3",
    "MTDAO",
    "NAMO",
    "NAMOD",
    "SCALE",
    "SGD",
    "SGDP",
    "SMMF",
    "SPAM",
    "STEP",
    "TAM",
    "AMAdamW",
    "AdEMAMix",
    "AdaBelief",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamP",
    "AdamW",
    "Adan",
    "AdaptiveBraking",
    "AlphaAdam",
    "Ano",
    "Anoall",
    "Anolog",
    "Anosqrt",
    "AuON",
    "CAdamW",
    "CAdan",
    "CLion",
    "CMuon",
    "DelayedNesterov",
    "Grams",
    "HybridAuON",
    "Lion",
    "LionK",
    "MoMo",
    "MoMoAdam",
    "Muon",
    "NLDeep",
    "NLDelta",
    "RandomScaling",
    "SGDSaI",
    "StableSPAM",
]
