"""Factored memories reproduce the trajectories recorded from their authors' code."""

import pytest

from tests.reproduce import factored
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector, names_in


@pytest.mark.parametrize("name", names_in(RECORDED, *factored.RULES))
def test_vector(name):
    state, words = check(Vector(RECORDED, name), EXECUTIONS[:1])
    assert state == "reproduced", words
