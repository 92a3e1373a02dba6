"""One vector made of those of n workers, of which some may be anything.

``get("krum")`` is the class :class:`Krum`, ``Krum(num_byzantine=2)(vectors)`` one vector. What prepares the vectors for
another rule is called before it: ``TrimmedMean(2)(NNM(2)(vectors))``.
"""

from polyak.federated._methods import Listing
from polyak.federated.aggregators.base import Aggregator
from polyak.federated.aggregators.before import ARC, NNM, Clipping, Preparation
from polyak.federated.aggregators.centers import CenteredClipping, GeometricMedian
from polyak.federated.aggregators.coordinates import MeaMed, Mean, Median, Phocas, TrimmedMean
from polyak.federated.aggregators.selections import CGE, MDA, MVA, NNA, Aksel, Krum, MultiKrum

__all__ = [
    "ARC",
    "CGE",
    "MDA",
    "MVA",
    "NNA",
    "NNM",
    "Aggregator",
    "Aksel",
    "CenteredClipping",
    "Clipping",
    "GeometricMedian",
    "Krum",
    "MeaMed",
    "Mean",
    "Median",
    "MultiKrum",
    "Phocas",
    "Preparation",
    "TrimmedMean",
    "get",
    "names",
]

ALL: tuple[type[Aggregator], ...] = (
    Mean, Median, TrimmedMean, MeaMed, Phocas, Krum, MultiKrum, NNA, MDA, MVA, CGE, Aksel, GeometricMedian,
    CenteredClipping, NNM, Clipping, ARC,
)  # fmt: skip
_LISTING = Listing(ALL, "aggregator")
names, get = _LISTING.names, _LISTING.get
