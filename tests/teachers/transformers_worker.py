"""Averages in the loop of transformers' Trainer; every function is a case for `ranks.launch`."""

from pathlib import Path
from typing import Any

from transformers import Trainer

from polyak.teachers import Warmup
from polyak.teachers.transformers import FILE, EMACallback
from tests import ranks
from tests.optim.transformers_worker import (
    CUT,
    SAVE_EVERY,
    PowerCut,
    arguments_of,
    model_of,
    optimizer_of,
    samples,
    tried,
)

CHECKPOINT = f"checkpoint-{CUT // SAVE_EVERY * SAVE_EVERY}"


def fit(folder: Path, when: str, accumulate: str, resume: bool | str = False, cut: bool = False, **more: Any) -> Any:
    """Train by transformers' own loop."""
    model = model_of()
    follower = EMACallback([Warmup(0.9), 0.8], when=when, **more)
    callbacks = [follower, PowerCut()] if cut else [follower]
    trainer = Trainer(
        model, arguments_of(folder, accumulate), train_dataset=samples(), eval_dataset=samples(),
        optimizers=optimizer_of("adamw", model), callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    averages = [{name: value.detach().clone() for name, value in average.items()} for average in follower.ema.averages]
    online = trainer.evaluate()["eval_loss"]
    with follower.ema.swapped():
        average = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == online
    return averages, follower.ema.step, online, average


def straight(folder: Path, when: str, accumulate: str) -> Any:
    """To the end without a stop."""
    return fit(folder / f"straight-{when}-{accumulate}", when, accumulate)


def interrupted(folder: Path, when: str, accumulate: str) -> None:
    """Killed between two checkpoints, in the second epoch."""
    ranks.killed(tried, fit, folder / f"{when}-{accumulate}", when, accumulate, False, True)


def resumed(folder: Path, when: str, accumulate: str) -> Any:
    """On from the last checkpoint that the killed process wrote."""
    own = folder / f"{when}-{accumulate}"
    assert (own / CHECKPOINT / FILE).exists()
    return fit(own, when, accumulate, resume=True)


def elsewhere(folder: Path, when: str, accumulate: str) -> Any:
    """From a checkpoint in another folder: refused, unless told where the averages are."""
    place = folder / f"{when}-{accumulate}" / CHECKPOINT
    message = ""
    try:
        fit(folder / "elsewhere", when, accumulate, resume=str(place))
    except FileNotFoundError as error:
        message = str(error)
    return message, fit(folder / "elsewhere", when, accumulate, resume=str(place), resume_from=place)


if __name__ == "__main__":
    ranks.work(globals())
