"""Averages of weights in the loop of transformers' Trainer (``pip install transformers accelerate``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyak.teachers import checkpoint
from polyak.teachers.attach import When
from polyak.teachers.ema import EMA
from polyak.teachers.schedules import Schedule

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError("polyak.teachers.transformers needs transformers: pip install transformers") from error

FILE = "polyak_ema.pt"
"""Where the averages lie in a checkpoint's folder."""


class EMACallback(TrainerCallback):
    """Keep averages of a Trainer's model; evaluate with ``with callback.ema.swapped(): trainer.evaluate()``.

    Updates follow real optimizer steps. Every checkpoint of the Trainer gets a file with the averages, and a resumed
    run goes on with them bit for bit. The Trainer tells a callback of no evaluation before it begins, so evaluations
    during the training see the weights and not the averages. Nor of a training that failed: its averages follow the
    optimizer until the next one begins, or ``callback.ema.detach()``.

    With FSDP2, which needs ``teacher=None``, the file holds whole tensors, gathered from all ranks, and any number of
    ranks can resume from it.

    Args:
        schedule: see :class:`polyak.teachers.EMA`.
        resume_from: folder of the checkpoint that the training resumes from, where that is not
            ``<output_dir>/checkpoint-<step>``.
        when: see :meth:`polyak.teachers.EMA.attach`.
        resume: ``"same"`` refuses a checkpoint of another schedule, ``"mine"`` goes on from it with this one.
        **options: further arguments of :class:`polyak.teachers.EMA`.

    Raises:
        RuntimeError: from :attr:`ema` before the training has begun; when the training begins and the model is sharded
            with FSDP1 or ZeRO-3, whose shards have not the parameters' shapes.
        FileNotFoundError: when a resumed training begins and its checkpoint holds no averages.
        ValueError: as EMA does, when the training begins.
    """

    def __init__(
        self,
        schedule: float | Schedule | list[float | Schedule] = 0.9999,
        *,
        resume_from: str | Path | None = None,
        when: When = "after_step",
        resume: checkpoint.Resume = "same",
        **options: Any,
    ) -> None:
        self._schedule, self._resume_from, self._when, self._options = schedule, resume_from, when, options
        self._resume = resume
        self._ema: EMA | None = None

    @property
    def ema(self) -> EMA:
        """The averages, from the beginning of the training on."""
        if self._ema is None:
            raise RuntimeError("the averages are made when the training begins: call trainer.train() first")
        return self._ema

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Make the averages, go on with stored ones, and follow the optimizer."""
        if self._ema is not None:
            self._ema.detach()  # a training that failed did not come to its end
            self._ema = None
        ema = EMA(more["model"], self._schedule, **self._options)
        if state.global_step > 0:
            folder = Path(self._resume_from or self._folder(args, state))
            if not (folder / FILE).exists():
                raise FileNotFoundError(
                    f"{folder / FILE} does not exist: the training resumes at step {state.global_step} without its "
                    "averages; give resume_from the checkpoint's folder"
                )
            stored = torch.load(folder / FILE, map_location="cpu", weights_only=True)
            ema.load_state_dict(checkpoint.scatter(ema, stored), schedule=self._resume)
        self._ema = ema.attach(more["optimizer"], self._when)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Put the averages beside the checkpoint, complete or not at all."""
        found = checkpoint.gather(self.ema, keep=state.is_world_process_zero)
        if state.is_world_process_zero:
            path = self._folder(args, state) / FILE
            torch.save(found, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Stop following the optimizer."""
        self.ema.detach()

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
