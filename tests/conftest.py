"""What every test gets: seeds, one thread, a compile cache that lasts, and no GPU tests where there is no GPU."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

# Kernels compiled by one run of the tests serve the next. Set before torch can read it.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "inductor"))

import torch
from hypothesis import HealthCheck, settings

# Neither chance nor the clock decides: on a busy machine drawing is slow too.
settings.register_profile("polyak", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("polyak")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The tensors here are small, and on a busy machine threads wait longer for each other than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
