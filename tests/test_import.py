"""Importing polyak costs next to nothing and pulls in nothing heavy; torch.compile alone takes over a second."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"lightning", "plotly", "pytorch_lightning", "rich", "scipy", "sklearn", "transformers", "typer"}
COMPILER = ("torch._dynamo", "torch._inductor")

PROBE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()  # what others do on this machine counts for nothing
import polyak, polyak.optim
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before)}))
"""


def in_fresh_python(code: str, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=known | environment
    ).stdout


@pytest.fixture(scope="module")
def imports(tmp_path_factory) -> list[dict]:
    """The first finds no bytecode and writes it, as where polyak was just installed."""
    cache = str(tmp_path_factory.mktemp("bytecode"))
    return [json.loads(in_fresh_python(PROBE, PYTHONPYCACHEPREFIX=cache)) for _ in range(5)]


def test_import_adds_little_to_torch(imports):
    assert min(run["seconds"] for run in imports) < 0.3


def test_import_loads_nothing_heavy(imports):
    new = imports[0]["new"]
    assert not [name for name in new if name.split(".")[0] in HEAVY]
    assert not [name for name in new if name.startswith(COMPILER)], "something compiles, or gets ready to, at import"


def test_bare_import_does_not_load_torch():
    assert in_fresh_python("import sys, polyak; print('torch' in sys.modules)").strip() == "False"


def test_parts_load_on_first_use():
    out = in_fresh_python("import polyak; print(polyak.optim.__name__, 'lab' in dir(polyak), polyak.__version__)")
    assert out.split()[:2] == ["polyak.optim", "True"]


def test_unknown_attribute():
    import polyak

    with pytest.raises(AttributeError, match="'polyak' has no attribute 'adamw'"):
        _ = polyak.adamw
