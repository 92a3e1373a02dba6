"""Trainings by the Trainer of transformers and by accelerate; every function is a case for `ranks.launch`."""

import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import polyak.optim
from tests import ranks
from tests.optim.training import weights

STEPS, SAVE_EVERY, CUT = 12, 3, 8  # the power goes after the step CUT
SAMPLES, BATCH = 20, 2


def model_of() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, attention_dropout=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def samples() -> list[dict[str, Tensor]]:
    words = torch.randint(32, (SAMPLES, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in words]


def optimizer_of(method: str, model: nn.Module) -> tuple[polyak.optim.Optimizer, Any]:
    optimizer = polyak.optim.create(method, model, weight_decay=0.1, lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def arguments_of(folder: Path, accumulate: str) -> TrainingArguments:
    return TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=BATCH, gradient_accumulation_steps=int(accumulate),
        save_strategy="steps", save_steps=SAVE_EVERY, use_cpu=True, report_to=[], disable_tqdm=True, seed=7,
        logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip


class PowerCut(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == CUT:
            ranks.die()


def fit(folder: Path, method: str, accumulate: str, resume: bool | str = False, cut: bool = False) -> Any:
    """Train by transformers' own loop."""
    model = model_of()
    trainer = Trainer(
        model, arguments_of(folder, accumulate), train_dataset=samples(), optimizers=optimizer_of(method, model),
        callbacks=[PowerCut()] if cut else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == STEPS
    return weights(model)


def tried(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()


def straight(folder: Path, method: str, accumulate: str) -> Any:
    """To the end without a stop."""
    return fit(folder / f"straight-{method}", method, accumulate)


def interrupted(folder: Path, method: str, accumulate: str) -> Any:
    """Killed between two checkpoints, in the second epoch."""
    ranks.killed(tried, fit, folder / method, method, accumulate, False, True)


def resumed(folder: Path, method: str, accumulate: str) -> Any:
    """On from the last checkpoint that the killed process wrote."""
    assert sorted(p.name for p in (folder / method).glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    return fit(folder / method, method, accumulate, resume=True)


def accelerated(folder: Path, method: str, first: int, last: int, cut: int | None = None) -> Any:
    """A loop with accelerate's objects: gradients of two batches a step, clipped; the state saved each SAVE_EVERY."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = model_of()
    optimizer, schedule = optimizer_of(method, model)
    loader = DataLoader(samples(), BATCH)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    batches = list(loader)  # a loader draws a random number, so it comes before the generators are restored
    if first:
        accelerator.load_state(str(folder / f"accelerate-{method}-{first}"))
    for step in range(first, last):
        for half in (0, 1):
            with accelerator.accumulate(model):
                batch = batches[(2 * step + half) % len(batches)]
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        if step + 1 == cut:
            ranks.die()
        if (step + 1) % SAVE_EVERY == 0:
            accelerator.save_state(str(folder / f"accelerate-{method}-{step + 1}"))
    return weights(accelerator.unwrap_model(model))


def accelerate_cut(folder: Path, method: str) -> Any:
    ranks.killed(tried, accelerated, folder, method, 0, STEPS, CUT)


def accelerate_resumed(folder: Path, method: str) -> Any:
    return accelerated(folder, method, CUT // SAVE_EVERY * SAVE_EVERY, STEPS)


def accelerate_straight(folder: Path, method: str) -> Any:
    return accelerated(folder / "straight", method, 0, STEPS)


def accelerate_infinite(folder: Path, method: str) -> Any:
    """accelerate's optimizer tells that its GradScaler skipped a step."""
    model = model_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = AcceleratedOptimizer(optimizer_of(method, model)[0], device_placement=False, scaler=scaler)
    history = []
    for step in range(4):
        loss = model(**{name: value[None] for name, value in samples()[step].items()}).loss
        scaler.scale(loss * torch.inf if step == 2 else loss).backward()
        before = weights(model)
        optimizer.step()
        optimizer.zero_grad()
        moved = any(not torch.equal(w, before[name]) for name, w in weights(model).items())
        history.append((optimizer.step_was_skipped, moved))
    counts = {float(s["step"]) for s in optimizer.optimizer.state.values() if "step" in s}
    return history, counts


if __name__ == "__main__":
    ranks.work(globals())
