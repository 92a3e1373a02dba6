"""The recorded averages, queues and contrasts of torch, timm, diffusers, EDM2, ema-pytorch, lightly and MoCo."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polyak.teachers import EMA
from tests import ranks
from tests.devices import DEVICES
from tests.reproduce import averages, contrast
from tests.reproduce.compare import error, limit
from tests.reproduce.run import EXECUTIONS, check
from tests.reproduce.vector import RECORDED, Vector, array, names_in

VECTORS = {name: Vector(RECORDED, name) for name in names_in(RECORDED, *averages.RULES, *contrast.RULES)}
TRAJECTORIES = [name for name, vector in VECTORS.items() if vector.variant in averages.SCHEDULES]
SEVERAL = [name for name, vector in VECTORS.items() if "in/fc.weight" in vector.inputs]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VECTORS)
def test_vector(name, device):
    state, words = check(VECTORS[name], EXECUTIONS[:1], device)
    assert state == "reproduced", words


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_resumed_in_the_middle(name):
    vector = VECTORS[name]
    got = averages.trajectory(vector, "cpu", resume_at=vector.manifest["steps"] // 3)
    assert error(vector, got) <= limit(vector).rtol


@pytest.mark.parametrize("name", SEVERAL)
def test_on_real_ranks(name, tmp_path):
    vector = VECTORS[name]
    ranks.launch("teachers.moco_worker", tmp_path, f"recorded:{name}", world=contrast.ranks_of(vector))
    got = {key: array(value) for key, value in ranks.result(tmp_path, f"recorded:{name}").items()}
    assert error(vector, got) <= limit(vector).rtol


@pytest.mark.parametrize("averaged", [False, True])
def test_buffers_of_torch(averaged):
    """torch's AveragedModel copies buffers, or with use_buffers averages them, integer ones too: here never."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=averaged)
    ours = EMA(model, 0.9, buffers="average" if averaged else "copy")
    for _ in range(5):
        model(torch.randn(8, 3, dtype=torch.float64) + 2)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        theirs.update_parameters(model)
        ours.update()
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.module.state_dict()[name], value, rtol=1e-12, atol=1e-12)
