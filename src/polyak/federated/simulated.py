"""Peers that train one model together, all of them in one process, some of them liars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from polyak.declare import NON_NEGATIVE, whole
from polyak.federated.attacks import Attack, flipped
from polyak.federated.gradients import rewound, seeded
from polyak.federated.monna import MoNNA, draw_heard
from polyak.federated.rules.messages import fault_of
from polyak.memory.flat import flat

Loss = Callable[[Any, Tensor], Tensor]


class SimulatedPeers:
    """All workers of MoNNA in one process: their gradients in one batch (``torch.func.vmap``), then mixing.

    In each step every honest worker hears itself, all liars, and others drawn until it has n - f vectors. Without an
    attack nobody lies. All workers start with the module's weights; the module itself is never written.

    Args:
        module: the model, its trainable parameters of one floating dtype on one device.
        loss: ``loss(outputs, targets)``, a scalar, such as ``torch.nn.functional.cross_entropy``.
        workers: the number of workers n, liars among them.
        method: learning rate, momentum, number of liars, the rule that mixes.
        attack: what the f liars send; None if all n are honest.
        generator: for who hears whom and what liars draw; a part of the state. What the model draws (dropout) goes by
            its seed and the step.
        classes: the number of classes, for an attack that flips labels.
        mix_buffers: send and mix the buffers of the weights' dtype too (statistics of batch normalization);
            otherwise each worker keeps its own.
        chunk_size: workers whose gradients are computed at once; None for all.

    Raises:
        ValueError: too few workers for the rule, a module without trainable parameters or of several dtypes, an attack
            without liars or, if it flips labels, without ``classes``.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        workers: int,
        method: MoNNA,
        attack: Attack | None = None,
        *,
        generator: torch.Generator,
        classes: int | None = None,
        mix_buffers: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        whole("workers", workers, "SimulatedPeers")
        method.fits(workers)
        if attack is not None and not method.num_byzantine:
            raise ValueError("SimulatedPeers: attack must be None where num_byzantine is 0")
        if attack is not None and attack.flips_labels and classes is None:
            raise ValueError(f"SimulatedPeers: {type(attack).__name__} needs classes, the number of them; got None")
        self.module, self.loss, self.method, self.attack = module, loss, method, attack
        self.workers, self.generator, self.classes, self.chunk_size = workers, generator, classes, chunk_size
        self.honest = workers - (method.num_byzantine if attack is not None else 0)
        weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        if not weights or len({(p.dtype, p.device) for p in weights.values()}) > 1:
            raise ValueError("SimulatedPeers: module must have trainable parameters, all of one dtype on one device")
        self._shapes = {name: p.shape for name, p in weights.items()}
        self.weights = self._of_each(flat(list(weights.values())))
        self.momenta = torch.zeros_like(self.weights)
        self.buffers = {name: self._of_each(b.detach()) for name, b in module.named_buffers()}
        self._sent_too = [k for k, b in self.buffers.items() if mix_buffers and b.dtype == self.weights.dtype]
        self.memory: Mapping[str, Tensor] | None = None
        self.steps = 0

    def _of_each(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self.honest, *tensor.shape).clone()

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step of all workers; the losses of the honest ones before it, ``(m,)``.

        Args:
            inputs: a batch for each honest worker, ``(m, batch, ...)``.
            targets: ``(m, batch, ...)``.

        Raises:
            ValueError: batches for another number of workers, or more vectors that are not finite than the rule stands.
                Nothing is changed then.
        """
        for name, value in (("inputs", inputs), ("targets", targets)):
            if value.ndim == 0 or len(value) != self.honest:
                raise ValueError(
                    f"SimulatedPeers: {name} must hold a batch for each of {self.honest} honest workers, "
                    f"got {tuple(value.shape)}"
                )
        with rewound(self.generator):
            return self._step(inputs, targets)

    @torch.no_grad()
    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        gradients, (losses, buffers) = self._gradients(inputs, targets)
        half, momenta = self.method.half_step(self.weights, self.momenta, gradients, self.steps)
        own = torch.cat([half, *(buffers[name].flatten(1) for name in self._sent_too)], 1)
        heard = draw_heard(self.honest, self.honest - self.method.num_byzantine, self.generator).to(own.device)
        memory = None if self.attack is None else self.attack.learn(self.memory, own)
        mixed = self.method.mixed(own, heard, self._lies(own, memory, inputs, targets))
        weights, *others = mixed.split([half.shape[1], *(buffers[k][0].numel() for k in self._sent_too)], 1)
        for name, mean in zip(self._sent_too, others, strict=True):
            buffers[name] = mean.reshape(buffers[name].shape)
        self.weights, self.momenta, self.buffers, self.memory = weights.contiguous(), momenta, buffers, memory
        self.steps += 1
        return losses

    def _lies(self, own: Tensor, memory: Mapping[str, Tensor] | None, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the liars send; with flipped labels, the mean after a step down the gradients of those."""
        f = self.method.num_byzantine
        if self.attack is None:
            return own[:0]
        if not self.attack.flips_labels:
            return self.attack(own, f, memory=memory, generator=self.generator)
        assert self.classes is not None
        gradients, _ = self._gradients(inputs, flipped(targets, self.classes))
        gradients = gradients.add(self.weights, alpha=self.method.weight_decay)
        step = self.method.lr_at(self.steps) * self.attack(gradients, f, memory=memory, generator=self.generator)
        return own.mean(0) - nn.functional.pad(step, (0, own.shape[1] - step.shape[1]))

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        """Gradients, losses and buffers after them of all honest workers; writes nothing."""

        def loss(weights: Tensor, buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
            named = {**self._named(weights), **{name: b.clone() for name, b in buffers.items()}}
            value = self.loss(functional_call(self.module, named, (x,)), y)
            return value, (value.detach(), {name: named[name].detach() for name in buffers})

        each = vmap(grad(loss, has_aux=True), randomness="different", chunk_size=self.chunk_size)
        with seeded((self.generator.initial_seed() + self.steps) % 2**63):
            found: tuple[Tensor, tuple[Tensor, dict[str, Tensor]]] = each(self.weights, self.buffers, inputs, targets)
        return found

    def _named(self, vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What the models of all honest workers make of the same inputs, in eval mode: ``(m, batch, ...)``."""

        def output(weights: Tensor, buffers: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.module, {**self._named(weights), **buffers}, (inputs,))
            return found

        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            found: Tensor = vmap(output, chunk_size=self.chunk_size)(self.weights, self.buffers)
        finally:
            for module, training in modes.items():
                module.training = training
        return found

    def tensors_of(self, worker: int) -> dict[str, Tensor]:
        """Trainable parameters and buffers of an honest worker by name, for ``module.load_state_dict(..., False)``.

        Raises:
            IndexError: a worker outside ``[0, m)``.
        """
        if not 0 <= worker < self.honest:
            raise IndexError(f"SimulatedPeers: worker must be in [0, {self.honest}), got {worker}")
        named = {**self._named(self.weights[worker]), **{name: b[worker] for name, b in self.buffers.items()}}
        return {name: tensor.clone() for name, tensor in named.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that changes, the generator's state too: a run that loads it goes on bit for bit."""
        return {
            "weights": self.weights.clone(),
            "momenta": self.momenta.clone(),
            "buffers": {name: b.clone() for name, b in self.buffers.items()},
            "memory": None if self.memory is None else {name: t.clone() for name, t in self.memory.items()},
            "steps": self.steps,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, with the same module, method and attack.

        Raises:
            ValueError: a state that lacks a part, or is of other workers or another module; nothing is changed then.
        """
        own = self.state_dict()
        if missing := sorted(own.keys() ^ state.keys()):
            raise ValueError(f"SimulatedPeers: the state must hold {sorted(own)}; {missing} are missing or too many")
        memory, vectors = state["memory"], {"weights": self.weights, "momenta": self.momenta}
        parts = (
            ("tensors", {name: state[name] for name in vectors}, vectors),
            ("buffers", state["buffers"], self.buffers),
            ("memory", {} if memory is None else memory, {} if memory is None else self._memory_like()),
        )
        for part, tensors, like in parts:
            if fault := fault_of(tensors, like, finite=False):
                raise ValueError(f"SimulatedPeers: the state must be of this module and attack, but its {part} {fault}")
        steps = whole("steps", state["steps"], "SimulatedPeers", NON_NEGATIVE)
        self.generator.set_state(state["generator"].cpu())  # refuses what is no state, and is then as it was
        device = self.weights.device
        self.weights, self.momenta = (state[name].to(device, copy=True) for name in vectors)
        self.buffers = {k: b.to(self.buffers[k].device, copy=True) for k, b in state["buffers"].items()}
        self.memory = None if memory is None else {k: t.to(device, copy=True) for k, t in memory.items()}
        self.steps = steps

    def _memory_like(self) -> Mapping[str, Tensor]:
        """Tensors such as the attack remembers of the vectors that workers send."""
        sent = [self.weights, *(self.buffers[name].flatten(1) for name in self._sent_too)]
        return {} if self.attack is None else self.attack.learn(None, torch.zeros_like(torch.cat(sent, 1)))
