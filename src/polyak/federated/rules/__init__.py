"""The rules of learning with a server, by name.

``get("fedavg_m")`` is the class :class:`FedAvgM`. A rule has no engine: :class:`polyak.federated.InProcess` runs any
of them on one machine.
"""

from polyak.federated._methods import Listing
from polyak.federated.rules.base import FederatedRule, Gradient
from polyak.federated.rules.dp_brem import DPBREM
from polyak.federated.rules.dp_brem_plus import DPBREMPlus
from polyak.federated.rules.fedavg import FedAvg
from polyak.federated.rules.fedavg_m import FedAvgM
from polyak.federated.rules.fedavg_m_vr import FedAvgMVR
from polyak.federated.rules.fedcm import FedCM
from polyak.federated.rules.fedmoswa import FedMoSWA, FedMoSWA2026
from polyak.federated.rules.fedswa import FedSWA, FedSWA2026
from polyak.federated.rules.messages import Aggregated, Message, State
from polyak.federated.rules.scaffold import SCAFFOLD
from polyak.federated.rules.scaffold_m import SCAFFOLDM
from polyak.federated.rules.scaffold_m_vr import SCAFFOLDMVR
from polyak.federated.rules.server_momentum import ServerMomentum

__all__ = [
    "DPBREM",
    "SCAFFOLD",
    "SCAFFOLDM",
    "SCAFFOLDMVR",
    "Aggregated",
    "DPBREMPlus",
    "FedAvg",
    "FedAvgM",
    "FedAvgMVR",
    "FedCM",
    "FedMoSWA",
    "FedMoSWA2026",
    "FedSWA",
    "FedSWA2026",
    "FederatedRule",
    "Gradient",
    "Message",
    "ServerMomentum",
    "State",
    "get",
    "names",
]

ALL: tuple[type[FederatedRule], ...] = (
    FedAvg, ServerMomentum, FedAvgM, FedCM, FedAvgMVR, SCAFFOLD, SCAFFOLDM, SCAFFOLDMVR, FedSWA, FedSWA2026, FedMoSWA,
    FedMoSWA2026, DPBREM, DPBREMPlus,
)  # fmt: skip
_LISTING = Listing(ALL, "rule")
names = _LISTING.names


def get(name: str) -> type[FederatedRule]:
    """The class of a name.

    Raises:
        ValueError: a name that there is not, the nearest is named; ``fedavgm``, which two papers use for two rules.
    """
    if name.lower() == "fedavgm":
        raise ValueError(
            "'fedavgm' are two rules: 'server_momentum' (Hsu et al., heavy ball at the server, Flower's FedAvgM) and "
            "'fedavg_m' (Cheng et al., the server's direction in every local step, FedCM)"
        )
    return _LISTING.get(name)
