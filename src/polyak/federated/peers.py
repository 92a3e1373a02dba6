"""MoNNA over ``torch.distributed``: every rank is a worker, without a server.

A rank sends its half step to all others and waits for theirs. A message is a header of known length (magic, step,
number of entries, dtype) and, only if that is what is expected, a vector: what else a liar sends is never read, and
counts as a vector that is not finite. Tags carry the step, so that unread messages meet no later one; two
runs have two groups.
Nobody waits until others have read: call ``torch.distributed.barrier()`` before leaving.

It stands ranks that send wrong numbers, not ranks that send nothing: every rank waits for all others, where the paper
goes on with n - f of them. One that is silent ends the step of every rank with the error of the group's timeout, and
one that sends a vector of another length than it said with that of gloo, which then closes the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from polyak.declare import NON_NEGATIVE, whole
from polyak.federated.attacks import Attack
from polyak.federated.gradients import rewound
from polyak.federated.monna import MoNNA
from polyak.federated.rules.messages import fault_of
from polyak.memory.flat import flat, unflat

MAGIC = 0x706F6C79
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _parameters(module: nn.Module, owner: str) -> list[nn.Parameter]:
    """The trainable parameters of a module, if their vector can be sent."""
    found = [p for p in module.parameters() if p.requires_grad]
    if len({(p.dtype, p.device) for p in found}) != 1 or found[0].dtype not in DTYPES:
        raise ValueError(f"{owner}: module must have trainable parameters, all of one floating dtype on one device")
    if found[0].device.type != "cpu":
        raise ValueError(
            f"{owner}: module must be on the CPU, since messages need tags, which gloo has and NCCL has not; "
            f"got {found[0].device}"
        )
    return found


class _Ranks:
    """The vectors of other ranks: two messages each, tagged with the step."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self.size, self.dtype, self.device, self.group = size, dtype, device, group
        self._sending: list[Any] = []
        self._before: list[Any] = []
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)

    def header(self, step: int) -> Tensor:
        return torch.tensor([MAGIC, step, self.size, DTYPES.index(self.dtype)], device=self.device)

    def send(self, vector: Tensor, ranks: Iterable[int], step: int) -> None:
        """Begin to send a vector to each of some ranks; what is sent stays in memory for another step."""
        vector, header = vector.contiguous(), self.header(step)
        works = [
            dist.isend(message, group=self.group, tag=2 * step + kind, group_dst=rank)
            for rank in ranks
            for kind, message in enumerate((header, vector))
        ]
        self._before, self._sending = self._sending, [*works, vector, header]

    def receive(self, ranks: Iterable[int], step: int) -> dict[int, Tensor | None]:
        """A vector of each of some ranks, None of one that announces anything else."""
        headers = {rank: self.header(step).zero_() for rank in ranks}
        self._wait(headers, 2 * step)
        good = [rank for rank, header in headers.items() if torch.equal(header, self.header(step))]
        vectors = {rank: torch.empty(self.size, dtype=self.dtype, device=self.device) for rank in good}
        self._wait(vectors, 2 * step + 1)
        return {rank: vectors.get(rank) for rank in headers}

    def _wait(self, into: Mapping[int, Tensor], tag: int) -> None:
        works = [dist.irecv(tensor, group=self.group, tag=tag, group_src=rank) for rank, tensor in into.items()]
        for work in works:
            assert work is not None
            work.wait()


class Peer:
    """This rank's worker of MoNNA: after ``loss.backward()``, :meth:`step` moves the parameters.

    All ranks of the group are workers; a rank that is to lie in an experiment has a :class:`LyingPeer` instead. Which
    ones lie, an honest rank does not know: it hears itself and n - f - 1 others, drawn anew in each step.

    Args:
        module: the model; its trainable parameters are on the CPU, of one floating dtype, and equal on all ranks.
        method: learning rate, momentum, number of liars, the rule that mixes.
        generator: for who is heard; a part of the state.
        group: the process group; None for all ranks.

    Raises:
        ValueError: too few ranks for the rule, a module without trainable parameters, of several dtypes, or on another
            device than the CPU.
    """

    def __init__(
        self, module: nn.Module, method: MoNNA, *, generator: torch.Generator, group: dist.ProcessGroup | None = None
    ) -> None:
        self.parameters = _parameters(module, "Peer")
        size, first = sum(p.numel() for p in self.parameters), self.parameters[0]
        self.ranks = _Ranks(size, first.dtype, first.device, group)
        method.fits(self.ranks.count)
        self.method, self.generator, self.steps = method, generator, 0
        self.momentum = torch.zeros(size, dtype=first.dtype, device=first.device)

    @torch.no_grad()
    def step(self, heard: Sequence[int] | None = None) -> None:
        """One step of all ranks; each calls it once.

        Args:
            heard: the ranks whose vectors count, in this order, this one among them; None draws them.

        Raises:
            ValueError: a parameter without gradient, a wrong ``heard``, or more vectors that are not finite than the
                rule stands; nothing of this rank is changed then. Of the first two nothing is sent either: the other
                ranks wait until it calls again.
        """
        missing = [i for i, p in enumerate(self.parameters) if p.grad is None]
        if missing:
            raise ValueError(f"Peer: every parameter must have a gradient, those at {missing} have none")
        with rewound(self.generator):
            self._step(self._chosen(heard))

    def _step(self, chosen: Sequence[int]) -> None:
        weights = flat([p.detach() for p in self.parameters])
        gradients = flat([p.grad.detach() for p in self.parameters if p.grad is not None])
        half, momentum = self.method.half_step(weights, self.momentum, gradients, self.steps)
        others = [rank for rank in range(self.ranks.count) if rank != self.ranks.rank]
        self.ranks.send(half, others, self.steps)
        received = {**self.ranks.receive(others, self.steps), self.ranks.rank: half}
        own, nothing = chosen.index(self.ranks.rank), torch.full_like(half, torch.nan)
        rows = torch.stack([nothing if (row := received[rank]) is None else row for rank in chosen])
        mixed = self.method.mixing.seen_by(own)(rows)
        self.momentum, self.steps = momentum, self.steps + 1
        for parameter, part in zip(self.parameters, unflat(mixed, self.parameters), strict=True):
            parameter.copy_(part)

    def _chosen(self, heard: Sequence[int] | None) -> list[int]:
        n, rank = self.ranks.count, self.ranks.rank
        if heard is None:
            others = torch.randperm(n - 1, generator=self.generator, device=self.generator.device)
            found = [int(i) + (int(i) >= rank) for i in others[: n - self.method.num_byzantine - 1]]
            return [*found, rank]
        chosen = [int(i) for i in heard]
        if rank not in chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(n)):
            raise ValueError(f"Peer: heard must be different ranks below {n}, {rank} among them, got {chosen}")
        self.method.mixing._fits(len(chosen))
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """What changes beside the parameters; a run that loads both goes on bit for bit."""
        return {"momentum": self.momentum.clone(), "steps": self.steps, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: a momentum of another shape or dtype; nothing is changed then.
        """
        momentum, own = state["momentum"], self.momentum
        if momentum.shape != own.shape or momentum.dtype != own.dtype:
            raise ValueError(
                f"Peer: momentum must be {tuple(own.shape)} and {own.dtype}, "
                f"got {tuple(momentum.shape)} and {momentum.dtype}"
            )
        self.generator.set_state(state["generator"].cpu())
        self.momentum, self.steps = momentum.to(own.device, copy=True), int(state["steps"])


class LyingPeer:
    """A rank that lies: it waits for the vectors of all honest ranks and sends what its attack makes of them.

    Args:
        module: as of :class:`Peer`; says the length and dtype that honest ranks expect.
        attack: what is sent; none that needs flipped labels, since that takes gradients.
        liars: the ranks that lie, this one among them; all with the same attack.
        generator: for what the attack draws; None for the global one.
        group: the process group; None for all ranks.

    Raises:
        ValueError: a module that :class:`Peer` refuses, liars that are no ranks, without this rank, or all ranks, or an
            attack that flips labels.
    """

    def __init__(
        self,
        module: nn.Module,
        attack: Attack,
        liars: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        parameters = _parameters(module, "LyingPeer")
        first, size = parameters[0], sum(p.numel() for p in parameters)
        self.ranks = _Ranks(size, first.dtype, first.device, group)
        self.honest = [rank for rank in range(self.ranks.count) if rank not in liars]
        known = len(set(liars)) == len(liars) and set(liars) <= set(range(self.ranks.count))
        if not known or self.ranks.rank not in liars or not self.honest:
            raise ValueError(
                f"LyingPeer: liars must be different ranks below {self.ranks.count}, {self.ranks.rank} among them, "
                f"not all; got {list(liars)}"
            )
        if attack.flips_labels:
            raise ValueError(f"LyingPeer: attack must not flip labels, got {attack}; be a Peer with flipped labels")
        self.attack, self.liars, self.generator, self.steps = attack, sorted(liars), generator, 0
        self.memory: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of all ranks; other liars send and are sent nothing that is read.

        Raises:
            ValueError: an honest rank that announces another vector than its module has.
        """
        received = self.ranks.receive(self.honest, self.steps)
        if lost := [rank for rank, vector in received.items() if vector is None]:
            raise ValueError(f"LyingPeer: ranks {lost} announce other vectors than of {self.ranks.size} entries")
        rows = torch.stack([vector for vector in received.values() if vector is not None])
        self.memory = self.attack.learn(self.memory, rows)
        sent = self.attack(rows, len(self.liars), memory=self.memory, generator=self.generator)
        own = sent[self.liars.index(self.ranks.rank)]
        self.ranks.send(own, self.honest, self.steps)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What changes; a run that loads it goes on bit for bit. The generator's state is None for the global one."""
        return {
            "memory": None if self.memory is None else {name: t.clone() for name, t in self.memory.items()},
            "steps": self.steps,
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, with the same attack and kind of generator.

        Raises:
            ValueError: a memory of another attack or length, or the state of a generator where there is none, or none
                where there is one; nothing is changed then.
        """
        memory = state["memory"]
        if memory is not None:
            like = self.attack.learn(None, torch.zeros(len(self.honest), self.ranks.size, dtype=self.ranks.dtype))
            if fault := fault_of(memory, like, finite=False):
                raise ValueError(f"LyingPeer: the state must be of {self.attack}, but its memory {fault}")
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError("LyingPeer: the state must be of a peer with a generator just where this one has one")
        steps = whole("steps", state["steps"], "LyingPeer", NON_NEGATIVE)
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
        self.memory = None if memory is None else {name: t.clone() for name, t in memory.items()}
        self.steps = steps
