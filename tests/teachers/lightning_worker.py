"""Averages in Lightning's own loop; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from polyak.teachers import Warmup
from polyak.teachers.lightning import EMACallback
from tests import ranks
from tests.optim.lightning_worker import PowerCut, Regression, checkpoints, fit, fit_or_say
from tests.optim.loop import BATCHES, EPOCHS, POISON
from tests.optim.training import batch

EXACT: dict[str, Any] = {"precision": "64-true"}


class Validated(Regression):
    """Remembers what its validation saw."""

    def __init__(self, poison: int = -1) -> None:
        super().__init__("cadamw", poison)
        self.losses: list[Tensor] = []

    def validation_step(self, nothing: Tensor, batch_idx: int) -> None:
        x, y = batch(0)
        self.losses.append((self.model(x, 0) - y).square().mean())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1))


def callback(when: str = "after_step", **more: Any) -> EMACallback:
    return EMACallback([Warmup(0.9), 0.8], part="model", when=when, **more)


def averages(found: EMACallback) -> Any:
    copies = [{name: value.detach().clone() for name, value in average.items()} for average in found.ema.averages]
    return copies, found.ema.step


def straight(folder: Path, when: str, accumulate: str) -> Any:
    """To the end without a stop."""
    follower = callback(when)
    fit(Validated(), folder, int(accumulate), follower, checkpoints(folder / f"straight-{when}-{accumulate}"), **EXACT)
    return averages(follower)


def interrupted(folder: Path, when: str, accumulate: str) -> None:
    """Killed in the middle of the second epoch."""
    callbacks = callback(when), checkpoints(folder / f"{when}-{accumulate}"), PowerCut(BATCHES + 4)
    ranks.killed(fit_or_say, Validated(), folder, int(accumulate), callbacks, EXACT)


def resumed(folder: Path, when: str, accumulate: str) -> Any:
    """On from the last checkpoint that the killed process wrote."""
    own = folder / f"{when}-{accumulate}"
    last = max(own.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert 0 < int(last.stem.split("=")[1]) < EPOCHS * BATCHES // int(accumulate)
    follower = callback(when)
    fit(Validated(), folder, int(accumulate), follower, checkpoints(own), ckpt_path=str(last), **EXACT)
    return averages(follower)


def validated(folder: Path, validate: str) -> Any:
    """What each validation saw, and the weights in the end."""
    module, follower = Validated(), callback(validate=validate == "yes")
    weights = fit(module, folder, 1, follower, **EXACT)
    return module.losses, averages(follower)[0][0], weights


def infinite(folder: Path) -> Any:
    """A step that a GradScaler skips moves nothing."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    scaler, follower = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000), callback()
    fit(Validated(POISON), folder, 1, follower, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0
    return averages(follower)


def broken(folder: Path) -> Any:
    """An exception in a validation leaves the weights in the model."""

    class Breaks(Validated):
        def validation_step(self, nothing: Tensor, batch_idx: int) -> None:
            if self.trainer.current_epoch == 1:
                raise KeyError("in validation")

    module, follower = Breaks(), callback()
    try:
        fit(module, folder, 1, follower, **EXACT)
    except KeyError:
        exchanged = [torch.equal(p, follower.ema.averages[0][n]) for n, p in module.model.named_parameters()]
        return follower.ema.step, exchanged, callback_stored(follower)
    raise AssertionError("it did not break")


def callback_stored(follower: EMACallback) -> int:
    return int(follower.state_dict()["step"])


def tested(folder: Path) -> Any:
    """For each checkpoint: what a test of it sees after the fit and in a fresh trainer, and its first average."""
    import lightning.pytorch as pl

    class Tested(Validated):
        def test_step(self, nothing: Tensor, batch_idx: int) -> None:
            self.validation_step(nothing, batch_idx)

        test_dataloader = Validated.val_dataloader

    own = folder / "tested"
    after = callback(), Tested()
    fit(after[1], folder, 1, after[0], checkpoints(own), **EXACT)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    seen = []
    for path in sorted(own.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1])):
        for follower, module in (after, (callback(), Tested())):
            module.losses.clear()
            pl.Trainer(callbacks=[follower], **quiet, **EXACT).test(module, ckpt_path=str(path), verbose=False)
            plain = Validated()
            with torch.no_grad():
                for name, value in plain.model.named_parameters():
                    value.copy_(follower.ema.averages[0][name])
                x, y = batch(0)
                wanted = (plain.model.double()(x, 0) - y).square().mean()
            stored = torch.load(path, weights_only=False)["callbacks"]
            steps = next(v["step"] for k, v in stored.items() if "EMACallback" in k)
            seen.append((float(module.losses[0]), float(wanted), follower.ema.step, steps))
    return seen


if __name__ == "__main__":
    ranks.work(globals())
