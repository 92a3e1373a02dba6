"""A communication hook of DistributedDataParallel: momentum, and compression, before gradients are averaged."""

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, Hyper, whole
from polyak.distributed.workers import ProcessGroup, Workers
from polyak.memory.averages import ema
from polyak.optim.engine.kernels import high
from polyak.optim.solvers.compressors import Compressor, Contractive, Identity

OWNER = "MomentumHook"


class MomentumHook:
    """Workers average their momenta instead of their gradients, compressed if asked for.

    ::

        worker i:  m_i <- momentum * m_i + (1 - momentum) * g_i
        unbiased:     q_i <- Q(m_i)
        contractive:  q_i <- C(m_i + e_i);  e_i <- m_i + e_i - q_i
        p.grad <- mean over workers of q_i

    Momentum and residual belong to a parameter, not to a bucket: DistributedDataParallel divides its buckets anew
    after the first step. Each parameter is compressed by itself, and what is drawn depends on ``seed``, the worker, the
    parameter and its count of steps alone. What is compressed is what the mean is made of; the buckets that travel are
    dense. Use it with an optimizer without momentum of its own. ::

        model = DistributedDataParallel(module)
        hook = MomentumHook(module, momentum=0.9, compressor=TopK(k=100))
        hook.register(model)

    With ``momentum=0`` gradients are compressed alone. Under gradient accumulation only the last backward pass, the one
    that communicates, enters, with the sum. Memories of half precision are kept in float32, and means are found in it.

    A worker's gradient that is not finite enters none of its memories and no count; it is sent uncompressed, so that
    no worker's mean is finite and all can leave out the step, as ``torch.amp.GradScaler`` does. Momenta are of the
    gradients that arrive, under a GradScaler of the scaled ones, so that each change of the scale weighs older
    gradients otherwise: keep the scale fixed, or train in bfloat16, which needs none.

    Args:
        module: the module inside.
        momentum: retention of the average, in [0, 1).
        compressor: one of :mod:`polyak.optim.solvers.compressors`; a contractive one gets error feedback.
        process_group: that of the DistributedDataParallel module; None: taken from it by :meth:`register`.
        seed: of the compressor, at least 0.

    Raises:
        TypeError: what is no module, compressor or number.
        ValueError: a number that is not allowed, a compressor that breaks its contract.
    """

    def __init__(
        self, module: nn.Module, momentum: float = 0.9, compressor: Compressor | None = None,
        process_group: ProcessGroup | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        compressor = Identity() if compressor is None else compressor
        if not isinstance(module, nn.Module):
            raise TypeError(f"{OWNER}: module must be a torch.nn.Module, got {type(module).__name__}")
        if not isinstance(compressor, Compressor):
            raise TypeError(f"{OWNER}: compressor must be a Compressor, got {type(compressor).__name__}")
        Hyper("momentum", 0.9, HALF_OPEN_UNIT).check(momentum, OWNER)
        self.seed = whole("seed", seed, OWNER, NON_NEGATIVE)
        self.momentum, self.compressor, self.workers = momentum, compressor, Workers(process_group)
        self._params = dict(module.named_parameters())
        self._names = {id(p): name for name, p in self._params.items()}
        compressor.verify(max(p.numel() for p in module.parameters()))
        self._has_feedback = isinstance(compressor, Contractive) and not isinstance(compressor, Identity)
        self.momenta: dict[str, Tensor] = {}
        self.residuals: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def register(self, model: nn.parallel.DistributedDataParallel) -> None:
        """Have a DistributedDataParallel module average through this hook; once, before its first backward pass.

        Raises:
            ValueError: a module of another process group, or with parameters that the hook's module has not.
        """
        if self.workers.group not in (None, model.process_group):
            raise ValueError(f"{OWNER}: process_group must be that of the DistributedDataParallel module, or None")
        if unknown := [name for name, p in model.named_parameters() if id(p) not in self._names]:
            raise ValueError(f"{OWNER}: the model has parameters that are not the hook's module's: {unknown}")
        self.workers = Workers(model.process_group)

        # the annotations are read, and must be no strings
        def average(hook: MomentumHook, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
            return hook._averaged(bucket)

        model.register_comm_hook(self, average)

    @torch.no_grad()
    def _averaged(self, bucket: Any) -> torch.futures.Future[Tensor]:
        for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True):
            g.copy_(self.encoded(self._names[id(p)], g))
        buffer = bucket.buffer()
        work = dist.all_reduce(buffer.to(high(buffer.dtype)), group=self.workers.group, async_op=True)
        mean: torch.futures.Future[Tensor] = work.get_future().then(
            lambda done: buffer.copy_(done.value()[0].div_(self.workers.size))
        )
        return mean

    def encoded(self, name: str, g: Tensor) -> Tensor:
        """What this worker sends of a parameter's gradient; its memories take it in, if all is finite."""
        precise = g.to(high(g.dtype))
        m = ema(self.momenta.get(name, torch.zeros_like(precise)), precise, 1 - self.momentum)
        u = m + self.residuals[name] if name in self.residuals else m
        if not bool(u.isfinite().all()):
            return u.to(g.dtype)
        step = self.steps.get(name, 0) + 1
        sent = self.compressor(u.reshape(-1), self._generator(name, step)).view(g.shape).to(g.dtype)
        if bool(sent.isfinite().all()):  # a half precision may have no room for it
            self.momenta[name], self.steps[name] = m, step
            if self._has_feedback:
                self.residuals[name] = u - sent
        return sent

    def _generator(self, name: str, step: int) -> torch.Generator:
        mark = hashlib.sha256(repr((self.seed, self.workers.rank, name, step)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(mark[:6], "big"))

    def state_dict(self) -> dict[str, Any]:
        """This worker's memories by the names of parameters; every rank saves its own."""
        kept = {"momenta": self.momenta, "residuals": self.residuals}
        return {**{key: {n: t.clone() for n, t in own.items()} for key, own in kept.items()}, "steps": dict(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the hook that saved it.

        Raises:
            ValueError: memories of other parameters or shapes; nothing has changed then.
        """
        for key in ("momenta", "residuals"):
            for name, t in state_dict[key].items():
                own = tuple(self._params[name].shape) if name in self._params else None
                if own != tuple(t.shape):
                    raise ValueError(f"{OWNER}: {key} of {name!r} must have the shape {own}, got {tuple(t.shape)}")
        self.momenta = {name: self._placed(name, t) for name, t in state_dict["momenta"].items()}
        self.residuals = {name: self._placed(name, t) for name, t in state_dict["residuals"].items()}
        self.steps = dict(state_dict["steps"])

    def _placed(self, name: str, saved: Tensor) -> Tensor:
        p = self._params[name]
        return saved.to(p.device, high(p.dtype), copy=True)
