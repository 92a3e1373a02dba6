"""Reference vectors, as float64 tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture
def vector():
    """Load a vector by name: its arrays, and the hyperparameters of its manifest (none for ``inputs``)."""

    def load(name):
        with np.load(VECTORS / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        manifest = VECTORS / f"{name}.json"
        return arrays, json.loads(manifest.read_text())["hyperparameters"] if manifest.exists() else {}

    return load
