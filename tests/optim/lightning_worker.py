"""Trainings by Lightning's own loop; every function is a case for `ranks.launch`."""

import traceback
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from tests import ranks
from tests.optim.loop import BATCHES, EPOCHS, POISON
from tests.optim.training import batch, build, net, weights

SAVE_EVERY = 3


class Regression(lightning.LightningModule):
    def __init__(self, method: str, poison: int = -1) -> None:
        super().__init__()
        self.method, self.poison = method, poison
        self.model = net()

    def training_step(self, nothing: Tensor, batch_idx: int) -> Tensor:
        index = self.current_epoch * BATCHES + batch_idx
        x, y = batch(index)
        loss = (self.model(x, index) - y).square().mean()
        return loss * torch.inf if index == self.poison else loss

    def configure_optimizers(self) -> Any:
        optimizer = build(self.method, self.model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PowerCut(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch * BATCHES + batch_idx == self.batch:
            ranks.die()


def fit(module: Regression, folder: Path, accumulate: int, *callbacks: Callback, **more: Any) -> dict[str, Tensor]:
    resume = more.pop("ckpt_path", None)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, default_root_dir=folder, callbacks=list(callbacks) or None,
        enable_checkpointing=bool(callbacks), **more,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(BATCHES), batch_size=1), ckpt_path=resume)
    return weights(module.model)


def exact(clip: str) -> dict[str, Any]:
    return {"precision": "64-true", "gradient_clip_val": float(clip) or None}


def place(folder: Path, *case: str) -> Path:
    return folder / "-".join(case)


def checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVE_EVERY, save_top_k=-1)


def straight(folder: Path, method: str, accumulate: str, clip: str) -> Any:
    """To the end without a stop."""
    own = place(folder, method, accumulate, clip, "straight")
    return fit(Regression(method), folder, int(accumulate), checkpoints(own), **exact(clip))


def interrupted(folder: Path, method: str, accumulate: str, clip: str) -> Any:
    """Killed in the middle of the second epoch, and of an accumulation."""
    callbacks = checkpoints(place(folder, method, accumulate, clip)), PowerCut(BATCHES + 4)
    ranks.killed(fit_or_say, Regression(method), folder, int(accumulate), callbacks, exact(clip))


def fit_or_say(module: Regression, folder: Path, accumulate: int, callbacks: Any, more: dict[str, Any]) -> None:
    try:
        fit(module, folder, accumulate, *callbacks, **more)
    except BaseException:
        traceback.print_exc()


def resumed(folder: Path, method: str, accumulate: str, clip: str) -> Any:
    """On from the last checkpoint that the killed process wrote."""
    own = place(folder, method, accumulate, clip)
    last = max(own.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert 0 < int(last.stem.split("=")[1]) < EPOCHS * BATCHES // int(accumulate)
    return fit(Regression(method), folder, int(accumulate), checkpoints(own), ckpt_path=str(last), **exact(clip))


def infinite(folder: Path, method: str) -> Any:
    """A GradScaler in Lightning's loop skips the step with an infinite loss."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    result = fit(Regression(method, POISON), folder, 1, plugins=[mixed])
    assert scaler.get_scale() == 2.0
    return result


if __name__ == "__main__":
    ranks.work(globals())
