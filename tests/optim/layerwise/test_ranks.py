"""Several ranks: replicas train as one process does, and sharded layers are refused."""

from pathlib import Path

import pytest
import torch

from tests import ranks
from tests.optim.layerwise.nets import NAMES, make, net, train, weights

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they trained, and what they were told."""
    folder = tmp_path_factory.mktemp("layerwise")
    ranks.launch(
        "optim.layerwise_worker", folder, *(f"{case}:{n}" for case in ("replicated", "sharded") for n in NAMES)
    )
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_replicas_are_one_process(done: Path, name: str) -> None:
    model = net()
    train(model, make(name, model), 0, 5)
    found = ranks.result(done, f"replicated:{name}")
    for key, p in weights(model).items():
        torch.testing.assert_close(found[key], p, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_sharded_layers_are_refused_with_the_reason(done: Path, name: str) -> None:
    told = ranks.result(done, f"sharded:{name}")
    assert "the layer conv is sharded (FSDP2, DTensor), and its factors are made of whole rows" in told
