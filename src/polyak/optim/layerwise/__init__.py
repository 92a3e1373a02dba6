"""Layer-wise second order: methods that read what flows through the layers of a model."""

from polyak.optim.layerwise.base import LayerMethod
from polyak.optim.layerwise.mkor import MKOR

__all__ = ["MKOR", "LayerMethod"]
