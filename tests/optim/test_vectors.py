"""Every method reproduces the trajectories recorded from its authors' code, in every execution mode."""

import pytest

import polyak.optim
from tests.devices import DEVICES
from tests.optim.scenario import KINDS
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector

BY_METHOD = {
    name: [v for v in polyak.optim.get(name).vectors if not v.startswith("torch.optim.")]
    for name in polyak.optim.names()
}
FIRST = {vectors[0]: name for name, vectors in BY_METHOD.items() if vectors}


def when(name: str, execution: str) -> list[pytest.MarkDecorator]:
    """Each kernel takes seconds to compile: one of each kind with the quick tests, one of each method with the slow."""
    if execution != "compiled" or FIRST.get(name) in KINDS:
        return []
    return [pytest.mark.slow if name in FIRST else pytest.mark.exhaustive]


CASES = [
    pytest.param(name, execution, marks=when(name, execution))
    for name in sorted({v for vectors in BY_METHOD.values() for v in vectors})
    for execution in EXECUTIONS
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "execution"), CASES)
def test_vector(name: str, execution: str, device: str) -> None:
    state, words = check(Vector(RECORDED, name), [execution], device)
    assert state == "reproduced", words
