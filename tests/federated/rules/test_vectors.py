"""Recorded vectors of rules with a server are recomputed."""

import pytest

from tests.recording import reproduced
from tests.reproduce.vector import RECORDED, Vector, names_in

KINDS = ("fedavg-m", "fedswa", "dp-accounting")


@pytest.mark.parametrize("name", names_in(RECORDED, *KINDS))
def test_recorded(name):
    reproduced(Vector(RECORDED, name))


@pytest.mark.parametrize("name", names_in(RECORDED, "dp-brem"))
def test_recorded_with_attacks(name):
    pytest.importorskip("polyak.federated.attacks")
    reproduced(Vector(RECORDED, name))
