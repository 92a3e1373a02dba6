"""Drivers reproduce what is recorded of them, whatever runs the optimizer's step."""

import pytest

from polyak.optim.drivers import CMS, DGD, XGrad
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector


@pytest.mark.parametrize(
    "execution", [pytest.param(e, marks=[pytest.mark.slow] * (e == "compiled")) for e in EXECUTIONS]
)
@pytest.mark.parametrize("name", [*XGrad.vectors, *CMS.vectors, *DGD.vectors])
def test_vector(name: str, execution: str) -> None:
    state, words = check(Vector(RECORDED, name), [execution])
    assert state == "reproduced", words
