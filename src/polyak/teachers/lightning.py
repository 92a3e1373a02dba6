"""Averages of weights in Lightning's loop (``pip install lightning``)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from polyak.teachers.attach import When
from polyak.teachers.checkpoint import Resume
from polyak.teachers.ema import EMA
from polyak.teachers.schedules import Schedule

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise ImportError("polyak.teachers.lightning needs Lightning: pip install lightning") from error


class EMACallback(Callback):
    """Keep averages of a LightningModule while it is fitted, and validate, test and predict with them.

    Updates follow real optimizer steps: accumulated batches count once, a step that the precision plugin skips does
    not. The averages are part of Lightning's checkpoints, and a resumed run goes on with them bit for bit. The
    checkpoints' own weights stay those of training.

    Args:
        schedule: see :class:`polyak.teachers.EMA`.
        part: name of the submodule to average, such as ``"model.backbone"``; ``""`` is the whole module.
        validate: whether validation, test and prediction, inside of a fit or after it, see the (first) average. Of
            callbacks with parts in common only one may.
        optimizer: index of the optimizer whose steps count.
        when: see :meth:`polyak.teachers.EMA.attach`.
        resume: ``"same"`` refuses a checkpoint of another schedule, ``"mine"`` goes on from it with this one.
        name: tells callbacks of one part apart in checkpoints.
        **options: further arguments of :class:`polyak.teachers.EMA`. ``teacher`` is ``None`` unless given: a whole
            LightningModule refers to its trainer and is not for copying.

    Raises:
        RuntimeError: from :attr:`ema` before the fit has begun; when a run begins and another callback puts averages
            into the same part; when the fit begins and the model is sharded with FSDP1 or ZeRO-3.
        ValueError: as EMA does, when the fit begins.
    """

    def __init__(
        self,
        schedule: float | Schedule | list[float | Schedule] = 0.9999,
        *,
        part: str = "",
        validate: bool = True,
        optimizer: int = 0,
        when: When = "after_step",
        resume: Resume = "same",
        name: str = "",
        **options: Any,
    ) -> None:
        self._schedule, self._part, self._validate = schedule, part, validate
        self._optimizer, self._when, self._options = optimizer, when, {"teacher": None, **options}
        self._resume, self._name = resume, name
        self._ema: EMA | None = None
        self._stored: dict[str, Any] | None = None
        self._inside = ExitStack()

    @property
    def state_key(self) -> str:
        """Where the averages lie among the ``"callbacks"`` of a checkpoint."""
        return self._generate_state_key(part=self._part, name=self._name)

    @property
    def ema(self) -> EMA:
        """The averages, from the beginning of the fit on."""
        if self._ema is None:
            raise RuntimeError("the averages are made when the fit begins: call trainer.fit() first")
        return self._ema

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that no two callbacks put averages in one place."""
        others = (c for c in trainer.callbacks if isinstance(c, EMACallback) and c is not self)  # type: ignore[attr-defined]
        for other in others:
            short, long = sorted((f"{self._part}.".lstrip("."), f"{other._part}.".lstrip(".")), key=len)
            if self._validate and other._validate and long.startswith(short):
                raise RuntimeError(
                    f"validate must be False in all but one of the EMACallbacks with parts in common, got True for "
                    f"{self._part!r} and {other._part!r}"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the averages, go on with stored ones, and follow the optimizer."""
        ema = self._ready(pl_module)
        ema.detach()
        ema.attach(trainer.optimizers[self._optimizer], self._when)

    def _ready(self, pl_module: LightningModule) -> EMA:
        """The averages of this module, as of the last checkpoint that was loaded."""
        part: nn.Module = pl_module.get_submodule(self._part)
        if self._ema is None or self._ema.model is not part:
            if self._ema is not None:
                self._ema.detach()
            self._ema = EMA(part, self._schedule, **self._options)
        if self._stored is not None:
            self._ema.load_state_dict(self._stored, schedule=self._resume)
            self._stored = None
        return self._ema

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop following the optimizer."""
        self.ema.detach()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate with the averages."""
        if not self._validate or (self._ema is None and self._stored is None):
            return
        ema = self._ready(pl_module)
        if ema.updates:
            self._inside.enter_context(ema.swapped())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights; Lightning stores its checkpoint after this."""
        self._inside.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test with the averages."""
        self.on_validation_start(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._inside.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict with the averages."""
        self.on_validation_start(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._inside.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights in the model, wherever it stopped."""
        self._inside.close()

    def state_dict(self) -> dict[str, Any]:
        """The averages, for Lightning's checkpoint."""
        return self._stored or ({} if self._ema is None else self._ema.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the averages are made."""
        self._stored = state_dict or None
