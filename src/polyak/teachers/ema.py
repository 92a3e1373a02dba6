"""An averaged model that follows another: teachers, keys' encoders and weights for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyak.memory._check import require
from polyak.teachers import checkpoint
from polyak.teachers.attach import Attachment, When
from polyak.teachers.averages import Averages
from polyak.teachers.batchnorm import warn_if_overwritten
from polyak.teachers.follow import Anchors
from polyak.teachers.noise import Noise
from polyak.teachers.plan import Plan
from polyak.teachers.schedules import Debiased, Schedule, as_schedule
from polyak.teachers.treatment import Buffers, Frozen, Treatment

Start = Literal["average", "teacher"]
Nonfinite = Literal["refuse", "skip", "absorb"]


class EMA(Averages):
    r"""Averages of a model's weights: :math:`e_t = \beta_t e_{t-1} + (1 - \beta_t)\,\theta_t`.

    Call :meth:`update` after each optimizer step, or :meth:`attach` the optimizer once. ``ema(x)`` runs the averaged
    model, ``with ema.swapped():`` puts the averages into the model itself for an evaluation.

    Parameters are averaged, those that have always had ``requires_grad=False`` treated as ``frozen`` says; one that
    has been averaged once is averaged on, also while it is frozen. Floating buffers are treated as ``buffers`` says,
    integer ones copied, and so are buffers that are not in the ``state_dict``, which may come, go and grow, as masks
    and other caches do. Tensors are matched by name, whatever DistributedDataParallel and ``torch.compile`` prepend;
    tied ones are averaged once. Under FSDP2 each rank averages its own shards.

    Args:
        model: the online model. A reference is kept and its tensors are looked up at each update: replaced ones, also
            of another dtype or device or no longer tied, are followed, other names and shapes are errors.
        schedule: :math:`\beta`: a number in [0, 1] or a :class:`~polyak.teachers.Schedule`; or a sequence of them, for
            several averages, which read the weights once between them.
        start: ``"average"``: the first update copies, and the weights before it are forgotten (torch's
            ``AveragedModel``, ema-pytorch, EDM2). ``"teacher"``: the weights at construction count (MoCo, BYOL, DINO).
        buffers: floating buffers, such as BatchNorm's statistics: ``"copy"`` them at each update, ``"average"`` them,
            or ``"keep"`` those that the averaged model makes by itself, in training mode, with the numbers beside them
            that count what they are made of.
        dtype: of the averages: ``None`` (float32, or wider where the model is), float32, float64 or bfloat16, which
            is rounded stochastically. A bfloat16 average rounded to nearest would stand still for beta above 0.996.
        device: of the averages; ``None`` is where each tensor is.
        update_every: only every so many-th call of :meth:`update` acts, the first one included; >= 1. Schedules count
            all calls, but for :class:`Uniform`.
        nonfinite: what to do when the online weights hold a NaN or infinity, one of which would poison an average
            for ever. ``"refuse"`` raises and changes nothing; ``"skip"`` changes nothing and counts it in
            :attr:`skipped`; ``"absorb"`` does not look: it saves one reading of the weights and, on an accelerator,
            a wait for the device.
        anchors: further sources as pairs of a model and its share of :math:`\theta_t`; the online model has the rest.
            CTP (arXiv:2308.07146) has ``[(reference, 0.5)]``. Shares are >= 0, and at most 1 together.
        teacher: ``"copy"`` copies the model without copying its tensors; a module (for several averages a sequence)
            of the same tensor names, built by you, is filled from the model; ``None`` keeps tensors only, for
            :meth:`swapped`. Models sharded with FSDP2 cannot be copied, nor those of which a module has a function put
            over its ``forward``.
        frozen: parameters without gradients: ``"copy"`` them at each update, or ``"share"`` the online model's, which
            are then neither held nor stored; one that is unfrozen later is averaged from then on. ``None`` is
            ``"share"`` with ``teacher=None``, else ``"copy"``, in the dtype of the averages, so that the averaged
            model runs.
        seed: of the stochastic rounding; the same on all ranks.
        execution: ``"auto"`` compiles the update of large tensors with ``torch.compile``, at the first update (seconds,
            cached on disk); ``"batched"`` does not.

    Raises:
        ValueError: if an argument is out of range, or tensors do not fit; names them.
        TypeError: if ``schedule`` or ``teacher`` is of another type.
        RuntimeError: if a model is sharded with FSDP1 or ZeRO-3.

    What differs from others: names are matched, not positions; torch copies all buffers unless told to average all,
    integers too, and forgets the schedule in checkpoints; timm averages floating buffers; ema-pytorch ignores integer
    ones.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: float | Schedule | Sequence[float | Schedule] = 0.9999,
        *,
        start: Start = "average",
        buffers: Buffers = "copy",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        update_every: int = 1,
        nonfinite: Nonfinite = "refuse",
        anchors: Anchors = (),
        teacher: nn.Module | Sequence[nn.Module] | Literal["copy"] | None = "copy",
        frozen: Frozen | None = None,
        seed: int = 0,
        execution: Literal["auto", "batched"] = "auto",
    ) -> None:
        require(start in ("average", "teacher"), "start", start, "'average' or 'teacher'")
        require(isinstance(update_every, int) and update_every >= 1, "update_every", update_every, "an int >= 1")
        require(nonfinite in ("refuse", "skip", "absorb"), "nonfinite", nonfinite, "'refuse', 'skip' or 'absorb'")
        require(execution in ("auto", "batched"), "execution", execution, "'auto' or 'batched'")
        several = isinstance(schedule, Sequence)
        given = tuple(schedule) if isinstance(schedule, Sequence) else (schedule,)
        self.schedules: tuple[Schedule, ...] = tuple(as_schedule(s) for s in given)
        require(len(self.schedules) >= 1, "schedule", schedule, "at least one schedule")
        from_zero = any(isinstance(s, Debiased) for s in self.schedules)
        require(start == "average" or not from_zero, "start", start, "'average' with Debiased")
        self.start, self.buffers = start, buffers
        self.update_every, self.nonfinite, self.execution = update_every, nonfinite, execution
        self.step = 0
        """Calls of :meth:`update`."""
        self.updates = 0
        """Updates that moved the averages."""
        self.skipped = 0
        """Updates left out because the weights were not finite."""
        self.seen = 0
        """Samples of these calls, where :meth:`update` was told of them; else one each."""
        self._last, self._last_seen = 0, 0
        self._warned = False
        self._known: Plan | None = None
        self._attachment: Attachment | None = None
        self.pending = False
        """Whether the next forward has to update: a step was made, and ``attach`` was told to wait for it."""
        treatment = Treatment(buffers, frozen or ("share" if teacher is None else "copy"), dtype, device)
        super().__init__(model, anchors, teacher, len(self.schedules), several, treatment)
        self._moving: set[str] = set()
        self._noise = Noise(seed)

    def __repr__(self) -> str:
        schedules = ", ".join(map(repr, self.schedules))
        return f"EMA({schedules}, start={self.start!r}, buffers={self.buffers!r}, updates={self.updates})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_attachment": None, "_known": None}

    @torch.no_grad()
    def update(self, batch_size: int = 1) -> None:
        """Move the averages towards the online model.

        Args:
            batch_size: samples of the step, an int >= 1, of all ranks: the unit of time of :class:`HalfLife` and
                :class:`Power`, whose times are calls where it is not given, as by :meth:`attach`. Others count calls.

        Raises:
            ValueError: if ``batch_size`` is out of range, or the model's tensors no longer fit the averages.
            FloatingPointError: with ``nonfinite="refuse"``, if a weight is infinite or NaN; nothing has changed then.
            RuntimeError: inside of :meth:`swapped`.
        """
        self._refuse_while_swapped("update")
        require(isinstance(batch_size, int) and batch_size >= 1, "batch_size", batch_size, "an int >= 1")
        step, seen = self.step + 1, self.seen + batch_size
        if (step - 1) % self.update_every == 0:
            plan = self._plan()
            if not self._may_absorb(plan):
                return
            count, first = self.updates + 1, self.updates == 0 and self.start == "average"
            calls, samples = (step, count, step - self._last), (seen, count, seen - self._last_seen)
            betas = [0.0 if first else s.beta(*(samples if s.in_samples else calls)) for s in self.schedules]
            plan.run([1.0 - beta for beta in betas])
            self.updates, self._last, self._last_seen = count, step, seen
        self.step, self.seen = step, seen

    def _plan(self) -> Plan:
        """What an update does, made again only when a tensor has been replaced, moved, frozen or unfrozen."""
        if self.buffers == "copy" and not self._warned:
            self._warned = warn_if_overwritten([r.module for r in self._replicas if r.module is not None])
        if self._known is None or not self._known.holds():
            self._moving |= self._sources[0][0].replaced()
            self._follow()
            compiled = self.execution == "auto"
            self._known = Plan(self._sources, self._replicas, self._treatment, self._moving, compiled, self._noise)
        return self._known

    def _may_absorb(self, plan: Plan) -> bool:
        if self.nonfinite == "absorb" or plan.is_finite():
            return True
        if self.nonfinite == "refuse":
            names = plan.names_of_nonfinite() or "a shard of another rank"
            raise FloatingPointError(f"the weights must be finite to be averaged, got NaN or infinity in {names}")
        self.skipped += 1
        return False

    def attach(self, optimizer: torch.optim.Optimizer, when: When = "after_step") -> EMA:
        """Update by itself once for each real step of an optimizer.

        A step that a GradScaler skips moves nothing, and accumulated gradients count once. Copies of the model, of the
        optimizer or of this object are attached to nothing. Of several optimizers attach the one that steps last. Where
        another takes over, :meth:`detach` and attach that; :func:`polyak.optim.switch` takes it along.

        Args:
            optimizer: the optimizer of the online model; a wrapper of accelerate is looked through.
            when: ``"after_step"``, or ``"before_forward"``: at the next forward of the model in training mode, as MoCo
                and ALBEF do. The teacher of every batch is the same, but for one update before the first step. The
                module that is called is to be the one that was given, so the compiled one where it is compiled.
                Where the next step comes without such a forward, the update is made before it, with a warning.

        Returns:
            This object.

        Raises:
            RuntimeError: if it is attached already.
            ValueError: if ``when`` is neither.
        """
        if self._attachment is not None:
            raise RuntimeError("this EMA is attached to an optimizer already: detach() it first")
        self._attachment = Attachment(self, optimizer, when)
        self.pending = when == "before_forward" and (self.pending or self.step == 0)
        return self

    def detach(self) -> None:
        """Undo :meth:`attach`; does nothing if it is not attached."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    @property
    def attached(self) -> bool:
        """Whether updates come by themselves."""
        return self._attachment is not None

    def snapshot(self, which: int = 0) -> dict[str, Any]:
        """A copy of a power-function average as of now, for :func:`polyak.teachers.reconstruct`.

        Args:
            which: index of the average.

        Returns:
            A dictionary of ``t``, ``sigma_rel``, ``tensors`` and the names ``averaged``, that ``torch.save`` takes.

        Raises:
            TypeError: if the schedule is not :class:`Power`.
            RuntimeError: before the first update.
        """
        kinds = self._treatment.kinds(self._sources[0][0].places)
        averaged = [name for name, kind in kinds.items() if kind == "average"]
        return checkpoint.snapshot(self.schedules[which], self._last_seen, self.averages[which], averaged)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit for bit: averages, counts, schedules. Tensors are not copied."""
        self._refuse_while_swapped("state_dict")
        return checkpoint.save(self)

    def load_state_dict(self, state: dict[str, Any], *, schedule: checkpoint.Resume = "same") -> None:
        """Go on from :meth:`state_dict`.

        Args:
            state: what it gave.
            schedule: ``"same"`` refuses a state of other schedules; ``"mine"`` goes on with those of this object, as
                for a longer run or another decay. The counts are those of the state.

        Raises:
            ValueError: if names, shapes, schedules or options differ; lists them. Nothing has been changed then.
        """
        self._refuse_while_swapped("load_state_dict")
        self._follow()
        checkpoint.load(self, state, schedule)

    def take_over(self, averages: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], steps: int) -> None:
        """Go on, in the middle of a run, from averages that something else has made.

        Args:
            averages: tensors by the model's names, such as ``state_dict()`` of the averaged model; for several
                schedules a sequence of them. Prefixes of wrappers are looked through. More tensors than the average
                has are left alone, and buffers that are only copied need not be there.
            steps: calls of the other's update so far, >= 1.

        Raises:
            ValueError: if names, shapes or their number differ. Nothing has been changed then.
            RuntimeError: inside of :meth:`swapped`.
        """
        self._refuse_while_swapped("take_over")
        self._follow()
        checkpoint.take_over(self, [averages] if isinstance(averages, Mapping) else averages, steps)
