"""Networks here are so small that no cut of them saves memory; only the test of that warning minds."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First of all marks, so that a test's own win."""
    quiet = pytest.mark.filterwarnings("ignore:these blocks save no memory:UserWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(quiet)
