"""What the ranks of test_peers.py do: ``python -m tests.federated.peer_ranks``."""

import copy
import io
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from polyak.federated import LyingPeer, MoNNA, Peer, attacks
from polyak.federated.peers import _Ranks
from tests.ranks import work

WORLD, LIARS, STEPS, LR, SEED = 4, 1, 7, 0.4, 11


def net() -> nn.Sequential:
    """The model with which all start."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each step a batch of every honest rank."""
    g = torch.Generator().manual_seed(SEED)
    m = WORLD - LIARS
    return [
        (torch.randn(m, 8, 5, generator=g, dtype=torch.float64), torch.randint(3, (m, 8), generator=g))
        for _ in range(STEPS)
    ]


def attack_of(name: str) -> attacks.Attack:
    """The attack of a case."""
    return attacks.Mimic(steps=3) if name == "mimic" else attacks.get(name)()


def method() -> MoNNA:
    """The method of all cases."""
    return MoNNA(LR, 0.9, LIARS, weight_decay=0.01)


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """The gradient of a batch alone."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def _gathered(model: nn.Module) -> list[torch.Tensor]:
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    found = [torch.empty_like(flat) for _ in range(WORLD)]
    dist.all_gather(found, flat)
    return found[: WORLD - LIARS]


def attacked(folder: Path, name: str, cut: str = "") -> list[torch.Tensor]:
    """The honest ranks' weights after some steps, the last rank a liar; saved and loaded on the way if cut."""
    model, generator = net(), torch.Generator().manual_seed(SEED)
    heard = torch.load(folder / "heard.pt")
    if dist.get_rank() == WORLD - 1:
        liar = LyingPeer(model, attack_of(name), [WORLD - 1], generator=generator)
        for t in range(STEPS):
            if cut and t == STEPS // 2:
                state, lied = _saved(liar.state_dict()), liar
                liar = LyingPeer(net(), attack_of(name), [WORLD - 1], generator=torch.Generator())
                liar.ranks = lied.ranks
                liar.load_state_dict(state)
            liar.step()
        return _gathered(model)
    peer = Peer(model, method(), generator=generator)
    for t, (x, y) in enumerate(batches()):
        if cut and t == STEPS // 2:
            weights, state = _saved((model.state_dict(), peer.state_dict()))
            model, before = net(), peer
            peer = Peer(model, method(), generator=torch.Generator())
            peer.ranks = before.ranks
            model.load_state_dict(weights)
            peer.load_state_dict(state)
        backward(model, x[peer.ranks.rank], y[peer.ranks.rank])
        peer.step([*heard[t][peer.ranks.rank].tolist(), WORLD - 1])
    return _gathered(model)


def otherwise(folder: Path, what: str) -> list[torch.Tensor]:
    """A liar that announces or sends what nobody expects; the others draw whom they hear."""
    model, rank, group = net(), dist.get_rank(), dist.new_group()
    size = sum(p.numel() for p in model.parameters())
    if rank == WORLD - 1:
        length, dtype = (size + 3, torch.float64) if what == "length" else (size, torch.float32)
        ranks, kept = _Ranks(length, dtype, torch.device("cpu"), group), []
        for t in range(STEPS):
            ranks.send(torch.full((length,), 7.0, dtype=dtype), range(WORLD - 1), t)
            kept.append(ranks._sending)  # it waits for nobody, so nothing says when they have been read
        return _gathered(model)
    peer = Peer(model, method(), generator=torch.Generator().manual_seed(rank), group=group)
    for x, y in batches():
        backward(model, x[rank], y[rank])
        peer.step()
    return _gathered(model)


def refused(folder: Path) -> list[str]:
    """What ranks refuse before anything is sent."""
    model, rank = net(), dist.get_rank()
    peer, found = Peer(model, method(), generator=torch.Generator()), []
    liar = LyingPeer(model, attacks.Mimic(steps=3), [rank], generator=torch.Generator())
    meta, (x, y) = nn.Linear(2, 2, device="meta"), batches()[0]
    before = copy.deepcopy(peer.state_dict())
    for attempt in (
        lambda: peer.step(),
        lambda: (backward(model, x[0], y[0]), peer.step([rank, rank, 0])),
        lambda: Peer(model, MoNNA(num_byzantine=2), generator=torch.Generator()),
        lambda: Peer(nn.ReLU(), method(), generator=torch.Generator()),
        lambda: LyingPeer(model, attacks.ALIE(), [rank + 1]),
        lambda: LyingPeer(model, attacks.ALIE(), [rank, 99]),
        lambda: LyingPeer(model, attacks.ALIE(), [rank, rank]),
        lambda: LyingPeer(nn.ReLU(), attacks.ALIE(), [rank]),
        lambda: LyingPeer(meta, attacks.ALIE(), [rank]),
        lambda: Peer(meta, method(), generator=torch.Generator()),
        lambda: liar.load_state_dict({**liar.state_dict(), "memory": {"mean": torch.zeros(3)}}),
        lambda: liar.load_state_dict({**liar.state_dict(), "generator": None}),
        lambda: LyingPeer(model, attacks.LabelFlip(), [rank]),
        lambda: peer.load_state_dict({**before, "momentum": torch.zeros(3)}),
    ):
        try:
            attempt()
            found.append("nothing")
        except ValueError as error:
            found.append(str(error))
    assert torch.equal(before["momentum"], peer.momentum) and peer.steps == 0
    assert torch.equal(before["generator"], peer.generator.get_state()), "a refused step draws nothing"
    return found


if __name__ == "__main__":
    work({"attacked": attacked, "otherwise": otherwise, "refused": refused})
