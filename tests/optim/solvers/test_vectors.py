"""The recorded runs of solvers."""

import pytest

from tests.reproduce import solvers
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector, names_in


@pytest.mark.parametrize("name", names_in(RECORDED, *solvers.RULES))
def test_vector(name: str) -> None:
    state, words = check(Vector(RECORDED, name), EXECUTIONS[:1])
    assert state == "reproduced", words
