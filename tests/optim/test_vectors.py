"""Every method reproduces the trajectories recorded from its authors' code, in every execution mode."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import polyak.optim
from polyak.testing import from_manifest
from tests.devices import DEVICES

VECTORS = Path(__file__).parent.parent / "vectors"
TORCH_REFERENCES = {"torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW"}
NAMES = sorted({v for name in polyak.optim.names() for v in polyak.optim.get(name).vectors} - TORCH_REFERENCES)
INPUTS = np.load(VECTORS / "inputs.npz")


def replay(name: str, execution: str, device: str) -> dict[str, np.ndarray]:
    manifest = json.loads((VECTORS / f"{name}.json").read_text())
    expected = np.load(VECTORS / f"{name}.npz")
    names = [key[2:] for key in expected.files if key.startswith("p/")]
    params = {n: torch.nn.Parameter(torch.tensor(INPUTS[f"p0/{n}"], device=device)) for n in names}
    optimizer = from_manifest(manifest, params, execution=execution)
    trajectory: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for t in range(manifest["steps"]):
        for n, p in params.items():
            p.grad = torch.tensor(INPUTS[f"g/{n}"][t], device=device)
        optimizer.step()
        for n, p in params.items():
            trajectory[n].append(p.detach().cpu().numpy().copy())
    return {n: np.stack(values) for n, values in trajectory.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("execution", ["eager", "batched", "compiled"])
@pytest.mark.parametrize("name", NAMES)
def test_vector(name: str, execution: str, device: str) -> None:
    expected = np.load(VECTORS / f"{name}.npz")
    manifest = json.loads((VECTORS / f"{name}.json").read_text())
    bfloat16 = manifest["rule"] == "muon" and not name.endswith("-f64")
    for tensor, got in replay(name, execution, device).items():
        want = expected[f"p/{tensor}"]
        if bfloat16:
            moved = np.abs(want - INPUTS[f"p0/{tensor}"]).max()
            assert np.abs(got - want).max() <= 2e-2 * moved + 1e-12, tensor
        else:
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13, err_msg=tensor)
