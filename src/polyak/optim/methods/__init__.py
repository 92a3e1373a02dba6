"""The published methods, one a file. Made by tools/make_lists.py from the files; not edited by hand."""

from polyak.optim.methods.adabelief import AdaBelief
from polyak.optim.methods.adam import Adam
from polyak.optim.methods.adamp import AdamP
from polyak.optim.methods.adamw import AdamW
from polyak.optim.methods.adan import Adan
from polyak.optim.methods.adatam import AdaTAM
from polyak.optim.methods.adatamw import AdaTAMW
from polyak.optim.methods.ademamix import AdEMAMix
from polyak.optim.methods.alphaadam import AlphaAdam
from polyak.optim.methods.ano import Ano
from polyak.optim.methods.anoall import Anoall
from polyak.optim.methods.anolog import Anolog
from polyak.optim.methods.anosqrt import Anosqrt
from polyak.optim.methods.cadamw import CAdamW
from polyak.optim.methods.cadan import CAdan
from polyak.optim.methods.clion import CLion
from polyak.optim.methods.csgdm import CSGDM
from polyak.optim.methods.grams import Grams
from polyak.optim.methods.lamb import LAMB
from polyak.optim.methods.lars import LARS
from polyak.optim.methods.lion import Lion
from polyak.optim.methods.lionk import LionK
from polyak.optim.methods.muon import Muon
from polyak.optim.methods.scale import SCALE
from polyak.optim.methods.sgd import SGD
from polyak.optim.methods.sgd_sai import SGDSaI
from polyak.optim.methods.sgdp import SGDP
from polyak.optim.methods.step import STEP
from polyak.optim.methods.tam import TAM

__all__ = [
    "CSGDM",
    "LAMB",
    "LARS",
    "SCALE",
    "SGD",
    "SGDP",
    "STEP",
    "TAM",
    "AdEMAMix",
    "AdaBelief",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamP",
    "AdamW",
    "Adan",
    "AlphaAdam",
    "Ano",
    "Anoall",
    "Anolog",
    "Anosqrt",
    "CAdamW",
    "CAdan",
    "CLion",
    "Grams",
    "Lion",
    "LionK",
    "Muon",
    "SGDSaI",
]
