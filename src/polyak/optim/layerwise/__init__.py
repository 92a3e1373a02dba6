"""Layer-wise second order: methods that read what flows through the layers of a model."""

from polyak.optim.layerwise.base import LayerMethod
from polyak.optim.layerwise.mkor import MKOR
from polyak.optim.layerwise.mkor_h import MKORH
from polyak.optim.layerwise.singd import IKFAC, SINGD
from polyak.optim.layerwise.sngd import SNGD

__all__ = ["IKFAC", "MKOR", "MKORH", "SINGD", "SNGD", "LayerMethod"]
