"""Without Flower the rules are there as ever, and what needs it says which extra has it."""

import importlib
import sys

import pytest

import polyak.federated


def test_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("polyak.federated.flower")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(polyak.federated, "flower", raising=False)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs flwr: pip install "polyak\[federated\]"') as found:
        importlib.import_module("polyak.federated.flower")
    assert "\n" not in str(found.value)
