"""Layer-wise methods reproduce the trajectories and factors recorded from their authors' code, in every mode."""

import pytest

import polyak.optim
from tests.devices import DEVICES
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector

VECTORS = [v for name in polyak.optim.names(layered=True) for v in polyak.optim.get(name).vectors]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "execution", [pytest.param(e, marks=[pytest.mark.slow] * (e == "compiled")) for e in EXECUTIONS]
)
@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str, execution: str, device: str) -> None:
    state, words = check(Vector(RECORDED, name), [execution], device)
    assert state == "reproduced", words


def test_all_of_the_folder_belong_to_a_method() -> None:
    recorded = {p.stem for rule in ("mkor", "singd", "sngd") for p in RECORDED.glob(f"{rule}-*.json")}
    assert recorded == set(VECTORS)
