"""Lightning beyond a fit: validation before it, prediction after it, two callbacks, another schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore::FutureWarning:lightning")

from polyak.teachers.lightning import EMACallback  # noqa: E402


class Model(pl.LightningModule):
    """Remembers the weights that each step saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.seen.append(self.net.weight.detach().clone())

    test_step = validation_step

    def predict_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.net.weight.detach().clone()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(epochs: int, *callbacks: Any) -> Any:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **dict.fromkeys(off, False))


def data() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), 8)


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Any, Model, str]:
    first, model = trainer(2, EMACallback(0.9)), Model()
    first.fit(model, data(), data())
    first.save_checkpoint(tmp_path / "x.ckpt")
    return first, model, str(tmp_path / "x.ckpt")


def test_prediction_and_test_have_the_average(fitted: tuple[Any, Model, str]) -> None:
    first, model, _ = fitted
    model.seen.clear()
    first.test(model, data(), verbose=False)
    average = first.callbacks[0].ema.averages[0]["net.weight"]
    assert torch.equal(first.predict(model, data())[0], average) and torch.equal(model.seen[0], average)
    assert not torch.equal(model.net.weight, average)


def test_a_run_goes_on_after_a_validation(fitted: tuple[Any, Model, str]) -> None:
    _, _, path = fitted
    second, model = trainer(3, EMACallback(0.9)), Model()
    second.validate(model, data(), ckpt_path=path, verbose=False)
    second.fit(model, data(), data(), ckpt_path=path)
    assert second.callbacks[0].ema.updates == 12


def test_another_schedule_goes_on_where_that_is_asked_for(fitted: tuple[Any, Model, str]) -> None:
    _, _, path = fitted
    with pytest.raises(ValueError, match="schedule='mine'"):
        trainer(3, EMACallback(0.99)).fit(Model(), data(), ckpt_path=path)
    second = trainer(3, EMACallback(0.99, resume="mine"))
    second.fit(Model(), data(), ckpt_path=path)
    assert second.callbacks[0].ema.updates == 12


def test_two_callbacks_store_both_and_one_evaluates(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="validate must be False in all but one"):
        trainer(1, EMACallback(0.9), EMACallback(0.5, name="fast")).fit(Model(), data(), data())
    callbacks = (
        EMACallback(0.9),
        EMACallback(0.5, name="fast", validate=False),
        EMACallback(0.7, part="net", validate=False),
    )
    run, model = trainer(1, *callbacks), Model()
    run.fit(model, data(), data())
    assert torch.equal(model.seen[-1], callbacks[0].ema.averages[0]["net.weight"])
    run.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert {c.state_key for c in callbacks} <= stored.keys()
    for c in callbacks:
        schedule = stored[c.state_key]["made_with"]["schedules"][0]
        assert schedule["decay"] == c.ema.schedules[0].decay
