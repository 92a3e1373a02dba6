"""Floor 2: train a network in gradient-isolated blocks, with far less activation memory than backpropagation.

* :class:`LocalTrainer`: for three-line use. :func:`local_backward`: inside a loop of your own.
* :class:`BlockPipeline`: blocks on several processes at once.
* :class:`LocalNetwork`: a network with its cuts and auxiliary networks; :func:`layers`, :class:`Layers`: what is cut.
* Auxiliary networks: :class:`Greedy`, :class:`DGL`, :class:`InfoPro`, :class:`AugLocal`, :class:`MAN`, or your
  own :class:`Auxiliary`.
"""

from polyak.local.auglocal import AugLocal
from polyak.local.auxiliary import Auxiliary, AuxiliaryNet, Batch, Classifier, Site
from polyak.local.backward import LocalOutcome, local_backward
from polyak.local.cut import balanced, uniform
from polyak.local.heads import DGL, Greedy
from polyak.local.infopro import InfoPro, supervised_contrastive
from polyak.local.listing import Layers, Part, layers
from polyak.local.man import MAN
from polyak.local.measure import ActivationMeter
from polyak.local.network import LocalNetwork
from polyak.local.parallel import BlockPipeline, NeighbourError
from polyak.local.resnet import BasicBlock, CifarResNet, cifar_resnet
from polyak.local.trainer import Epoch, LocalTrainer

__all__ = [
    "DGL",
    "MAN",
    "ActivationMeter",
    "AugLocal",
    "Auxiliary",
    "AuxiliaryNet",
    "BasicBlock",
    "Batch",
    "BlockPipeline",
    "CifarResNet",
    "Classifier",
    "Epoch",
    "Greedy",
    "InfoPro",
    "Layers",
    "LocalNetwork",
    "LocalOutcome",
    "LocalTrainer",
    "NeighbourError",
    "Part",
    "Site",
    "balanced",
    "cifar_resnet",
    "layers",
    "local_backward",
    "supervised_contrastive",
    "uniform",
]
