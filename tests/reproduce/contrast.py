"""Momentum contrast: MoCo's steps on one process, and on several as groups of one batch."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyak.teachers import MoCo, projection_head
from tests.reproduce.vector import Unknown, Vector, array


class Encoder(nn.Module):
    """``fc(relu(body(x)))``, of the sizes of the recorded weights."""

    def __init__(self, weights: dict[str, Tensor], mlp: bool) -> None:
        super().__init__()
        hidden, features = weights["body.weight"].shape
        dim = weights["fc.2.weight" if mlp else "fc.weight"].shape[0]
        self.body, self.fc = nn.Linear(features, hidden), projection_head(hidden, dim, mlp)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.body(x)))


class Ordered(MoCo):
    """Shuffles as the recorded run did."""

    order: Tensor

    def permutation(self, rows: int, device: torch.device) -> Tensor:
        assert rows == len(self.order)
        return self.order.to(device)


def made(vector: Vector, encoder: nn.Module, device: str, **options: Any) -> Ordered:
    """MoCo with the recorded queue."""
    h = {ours: vector.option(theirs) for ours, theirs in (("dim", "dim"), ("queue_size", "K"), ("momentum", "m"))}
    moco = Ordered(encoder, temperature=vector.option("T"), **h, **options).to(device, vector.dtype)
    moco.queue.key.copy_(vector.input("in/queue", device).T)
    moco.queue.position.copy_(torch.tensor([pointer := _pointer(vector), 0]))
    moco.queue.pointer = pointer
    return moco


def _pointer(vector: Vector) -> int:
    return int(vector.input("in/queue_ptr")) if "in/queue_ptr" in vector.inputs else 0


def _queue(moco: MoCo) -> dict[str, Any]:
    return {"queue": moco.queue.read().T, "queue_ptr": [moco.queue.pointer]}


def one_process(vector: Vector, device: str) -> dict[str, np.ndarray]:
    """Logits, loss, queue and both encoders after each step of plain SGD."""
    vector.read_all("K", "T", "batch", "dim", "lr", "m", "mlp")
    start = {k.removeprefix("in/q/"): vector.input(k, device) for k in vector.inputs if k.startswith("in/q/")}
    moco = made(vector, Encoder(start, vector.option("mlp", "fc.2.weight" in start)), device)
    for encoder in (moco.encoder, moco.key_encoder):
        encoder.load_state_dict(start)
    optimizer = torch.optim.SGD(moco.encoder.parameters(), vector.option("lr"))
    found: dict[str, np.ndarray] = {}
    for t in vector.steps(r"in/(\d+)/im_q"):
        out = moco(vector.input(f"in/{t}/im_q", device), vector.input(f"in/{t}/im_k", device))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        got = {"logits": out.logits, "loss": out.loss, **_queue(moco)}
        got |= {f"q/{name}": x for name, x in moco.encoder.state_dict().items()}
        got |= {f"k/{name}": x for name, x in moco.key_encoder.state_dict().items()}
        found |= {f"out/{t}/{name}": array(value) for name, value in got.items()}
    return found


def ranks_of(vector: Vector) -> int:
    """How many ranks were recorded."""
    return 1 + max(int(found[1]) for key in vector.inputs if (found := re.match(r"in/\d+/rank(\d+)/", key)))


def batch_norm_encoder(vector: Vector) -> nn.Module:
    """A linear map without bias and batch normalization, with the recorded weight."""
    weight = vector.input("in/fc.weight")
    encoder = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False), nn.BatchNorm1d(weight.shape[0]))
    encoder.to(weight.dtype)[0].weight.data.copy_(weight)
    return encoder


def several_processes(vector: Vector, device: str) -> dict[str, np.ndarray]:
    """Logits of each rank and the queue, with the ranks as groups of one batch."""
    vector.read_all("K", "T", "batch", "dim", "m")
    world = ranks_of(vector)
    moco = made(vector, batch_norm_encoder(vector), device, bn_groups=world)
    found: dict[str, np.ndarray] = {}
    for t in vector.steps(r"in/(\d+)/rank0/im_q"):
        moco.order = vector.input(f"in/{t}/perm", device)
        views = [[vector.input(f"in/{t}/rank{r}/{v}", device) for r in range(world)] for v in ("im_q", "im_k")]
        logits = moco(*map(torch.cat, views)).logits
        found |= {f"out/{t}/rank{r}/logits": array(part) for r, part in enumerate(logits.chunk(world))}
        found |= {f"out/{t}/{name}": array(value) for name, value in _queue(moco).items()}
    return found


def on_this_rank(vector: Vector, rank: int) -> dict[str, np.ndarray]:
    """The same on one of as many real ranks: its own logits, and the queue."""
    moco = made(vector, batch_norm_encoder(vector), "cpu")
    found: dict[str, np.ndarray] = {}
    for t in vector.steps(r"in/(\d+)/rank0/im_q"):
        moco.order = vector.input(f"in/{t}/perm")
        views = (vector.input(f"in/{t}/rank{rank}/{v}") for v in ("im_q", "im_k"))
        found[f"out/{t}/rank{rank}/logits"] = array(moco(*views).logits)
        found |= {f"out/{t}/{name}": array(value) for name, value in _queue(moco).items()}
    return found


def moco(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """What a vector of this family holds, by the inputs that it has."""
    if "in/fc.weight" in vector.inputs:
        return several_processes(vector, device)
    if any(key.startswith("in/q/") for key in vector.inputs):
        return one_process(vector, device)
    raise Unknown(f"nothing recomputes the variant {vector.variant!r} of {vector.rule!r}")


RULES = {"moco-v2": moco}
