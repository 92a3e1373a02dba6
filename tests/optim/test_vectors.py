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
QUICK = {vectors[0] for name, vectors in BY_METHOD.items() if name in KINDS}
CASES = [
    # each kernel takes seconds to compile: one of each kind here, the rest with the slow tests
    pytest.param(name, execution, marks=[pytest.mark.slow] * (execution == "compiled" and name not in QUICK))
    for name in sorted({v for vectors in BY_METHOD.values() for v in vectors})
    for execution in EXECUTIONS
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "execution"), CASES)
def test_vector(name: str, execution: str, device: str) -> None:
    state, words = check(Vector(RECORDED, name), [execution], device)
    assert state == "reproduced", words
