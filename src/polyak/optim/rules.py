"""The vocabulary: rules to chain. Made by tools/make_lists.py from the files; not edited by hand."""

from polyak.optim.methods.adabelief import adabelief
from polyak.optim.methods.adan import adan
from polyak.optim.methods.adatam import adatam
from polyak.optim.methods.ademamix import ademamix
from polyak.optim.methods.alphaadam import selective
from polyak.optim.methods.auon import brake
from polyak.optim.methods.delayed_nesterov import delayed_nesterov
from polyak.optim.methods.fismo import whitened_polar
from polyak.optim.methods.grams import grams
from polyak.optim.methods.gsm import masked, most_salient
from polyak.optim.methods.lion import lion
from polyak.optim.methods.m3 import multi_scale, to_rms
from polyak.optim.methods.mt_dao import mt_dao
from polyak.optim.methods.namo import sized_polar
from polyak.optim.methods.nl_deep import deep_memory
from polyak.optim.methods.nl_delta import delta_memory, features
from polyak.optim.methods.random_scaling import discounted_descent
from polyak.optim.methods.sgd_sai import scaled_at_start
from polyak.optim.methods.smmf import fading_adam
from polyak.optim.methods.spam import spike_aware_adam
from polyak.optim.methods.stable_spam import cooled
from polyak.optim.methods.step import preconditioned_adam
from polyak.optim.methods.tam import torque_aware
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.adaptive_memory import plane_adam, plane_momentum
from polyak.optim.vocabulary.ano import ano
from polyak.optim.vocabulary.balls import heavy_ball, momentum_ema
from polyak.optim.vocabulary.braking import braked
from polyak.optim.vocabulary.convex import subgradient
from polyak.optim.vocabulary.lines import level
from polyak.optim.vocabulary.masks import random_mask
from polyak.optim.vocabulary.matrices import orthogonalize
from polyak.optim.vocabulary.model_step import model_adam, model_momentum
from polyak.optim.vocabulary.polyak_step import polyak_step
from polyak.optim.vocabulary.scale_free import clip_norm, project
from polyak.optim.vocabulary.scaling import random_scaling
from polyak.optim.vocabulary.signs import cautious
from polyak.optim.vocabulary.sparse import sr_ste
from polyak.optim.vocabulary.spikes import ada_clip, clip_spikes, momentum_reset, norm_control, rewarm
from polyak.optim.vocabulary.trust import trust
from polyak.optim.vocabulary.weight import decay, descend, subtract, times_lr

__all__ = [
    "ada_clip",
    "adabelief",
    "adam",
    "adan",
    "adatam",
    "ademamix",
    "ano",
    "brake",
    "braked",
    "cautious",
    "clip_norm",
    "clip_spikes",
    "cooled",
    "decay",
    "deep_memory",
    "delayed_nesterov",
    "delta_memory",
    "descend",
    "discounted_descent",
    "fading_adam",
    "features",
    "grams",
    "heavy_ball",
    "level",
    "lion",
    "masked",
    "model_adam",
    "model_momentum",
    "momentum_ema",
    "momentum_reset",
    "most_salient",
    "mt_dao",
    "multi_scale",
    "norm_control",
    "orthogonalize",
    "plane_adam",
    "plane_momentum",
    "polyak_step",
    "preconditioned_adam",
    "project",
    "random_mask",
    "random_scaling",
    "rewarm",
    "scaled_at_start",
    "selective",
    "sized_polar",
    "spike_aware_adam",
    "sr_ste",
    "subgradient",
    "subtract",
    "times_lr",
    "to_rms",
    "torque_aware",
    "trust",
    "whitened_polar",
]
