"""Peers over torch.distributed: four processes, one of them a liar, do what the simulator does."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from polyak.federated import SimulatedPeers, draw_heard
from tests.federated import peer_ranks
from tests.federated.peer_ranks import LIARS, SEED, STEPS, WORLD
from tests.ranks import launch, result

ATTACKS = ("alie", "foe", "not_finite", "mimic", "gaussian")


def simulated(name: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = SimulatedPeers(
            peer_ranks.net(), F.cross_entropy, WORLD, peer_ranks.method(), peer_ranks.attack_of(name),
            generator=torch.Generator().manual_seed(SEED),
        )  # fmt: skip
    for x, y in peer_ranks.batches():
        ours.step(x, y)
    return ours.weights


def draws() -> list[torch.Tensor]:
    """Whom the simulator's workers hear, where the attack draws nothing."""
    generator = torch.Generator().manual_seed(SEED)
    return [draw_heard(WORLD - LIARS, WORLD - 2 * LIARS, generator) for _ in range(STEPS)]


@pytest.mark.slow
def test_ranks_do_what_the_simulator_does(tmp_path):
    torch.save(draws(), tmp_path / "heard.pt")
    cases = [f"attacked:{name}" for name in ATTACKS]
    whole, cut, learnt = "otherwise:length", "attacked:alie:cut", "attacked:mimic:cut"
    launch(
        "federated.peer_ranks",
        tmp_path,
        *cases,
        cut,
        learnt,
        whole,
        "otherwise:dtype",
        "refused",
        world=WORLD,
    )
    for name, case in zip(ATTACKS, cases, strict=True):
        found = torch.stack(result(tmp_path, case))
        if name != "gaussian":  # whose draws stand between those of who is heard
            torch.testing.assert_close(found, simulated(name), rtol=1e-12, atol=1e-12)
        assert found.isfinite().all()
    assert torch.equal(torch.stack(result(tmp_path, cut)), torch.stack(result(tmp_path, "attacked:alie")))
    assert torch.equal(torch.stack(result(tmp_path, learnt)), torch.stack(result(tmp_path, "attacked:mimic")))
    for what in ("length", "dtype"):
        found = torch.stack(result(tmp_path, f"otherwise:{what}"))
        assert found.isfinite().all() and found.abs().max() < 5
    words = [
        "every parameter must have a gradient", "heard must be different ranks below 4", "at most 1 of 4 workers",
        "trainable parameters", "different ranks below 4, 0 among them", "got [0, 99]", "got [0, 0]",
        "LyingPeer: module must have trainable", "must be on the CPU", "must be on the CPU", "its memory has the names",
        "with a generator just where", "must not flip labels", "momentum must be (57,)",
    ]  # fmt: skip
    for want, got in zip(words, result(tmp_path, "refused"), strict=True):
        assert want in got
