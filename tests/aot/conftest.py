"""Two small functions, compiled once into the user's cache folder, and tests that copy their packages about."""

import warnings

import pytest

from polyak import aot
from polyak.aot import obtain, report
from tests.aot.sources import Builder, source


@pytest.fixture(scope="session")
def real():
    """The package of descend, made as users make it: any warning would be theirs to read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = aot.load(source())
    assert kernel is not None, aot.failed(source())
    return kernel.path


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that knows nothing yet, with an empty cache folder; the path of that folder."""
    monkeypatch.setattr(obtain, "_state", obtain._State())
    monkeypatch.setattr(report, "_said", set())
    (own := tmp_path / "own").mkdir()
    monkeypatch.setattr(obtain, "temporary", lambda process: own)
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POLYAK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builder(monkeypatch, real, fresh):
    fake = Builder(real)
    monkeypatch.setattr(obtain, "build", fake)
    return fake
