"""The method under test in the loops of Lightning, transformers and accelerate: no adapter is needed."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polyak.lab.problem import Problem
from polyak.lab.train import execute

STEPS, EVERY, BATCH = 12, 4, 8

pytestmark = pytest.mark.slow


def tensors(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    return x, x @ torch.arange(4.0)[:, None]


def loader():
    return DataLoader(TensorDataset(*tensors(STEPS * BATCH, 0)), BATCH)


def error_of(model, split):
    x, y = tensors(32, {"validation": 1, "test": 2}[split])
    with torch.no_grad():
        return nn.functional.mse_loss(model(x), y).item()


def plain(make_optimizer, seed, report, split):
    """What every framework below has to do."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    for step, (x, y) in enumerate(loader(), 1):
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            report(step, error_of(model, "validation"))
    return error_of(model, split)


def run(train, split="test", bars=()):
    problem = Problem(name="framework", train=train, metric="error", higher_is_better=False, steps=STEPS)
    return execute(problem, "adamw", {"lr": 0.1}, 3, split, STEPS, bars)


def with_lightning(make_optimizer, seed, report, split):
    lightning = pytest.importorskip("lightning")

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(4, 1)

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.mse_loss(self.model(x), y)

        def configure_optimizers(self):
            return make_optimizer(self)

        def on_train_batch_end(self, *_):
            if self.global_step % EVERY == 0:
                report(self.global_step, error_of(self.model, "validation"))

    module = Regression()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, loader())
    return error_of(module.model, split)


def with_transformers(folder):
    def train(make_optimizer, seed, report, split):
        transformers = pytest.importorskip("transformers")

        class Regression(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = nn.Linear(4, 1)

            def forward(self, x, labels):
                output = self.model(x)
                return {"loss": nn.functional.mse_loss(output, labels), "logits": output}

        class Tell(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step % EVERY == 0:
                    report(state.global_step, error_of(model.model, "validation"))

        model = Regression()
        arguments = transformers.TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH, lr_scheduler_type="constant", use_cpu=True,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", max_grad_norm=0.0,
            dataloader_pin_memory=False, train_sampling_strategy="sequential",
        )  # fmt: skip
        x, y = tensors(STEPS * BATCH, 0)
        rows = [{"x": x[i], "labels": y[i]} for i in range(len(x))]
        optimizers = (make_optimizer(model), None)
        transformers.Trainer(model, arguments, train_dataset=rows, optimizers=optimizers, callbacks=[Tell()]).train()
        return error_of(model.model, split)

    return train


def with_accelerate(make_optimizer, seed, report, split):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Linear(4, 1)
    model, optimizer, batches = accelerator.prepare(model, make_optimizer(model), loader())
    for step, (x, y) in enumerate(batches, 1):
        accelerator.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            report(step, error_of(model, "validation"))
    return error_of(model, split)


@pytest.fixture(params=["lightning", "transformers", "accelerate"])
def framework(request, tmp_path):
    loops = {"lightning": with_lightning, "accelerate": with_accelerate}
    return loops.get(request.param) or with_transformers(tmp_path)


def test_its_loop_is_a_run_like_any_other(framework):
    mine, expected = run(framework), run(plain)
    assert mine.status == "finished", mine.detail
    assert mine.metric == pytest.approx(expected.metric, rel=1e-5)
    assert [step for step, _ in mine.detail["validation"]] == [EVERY, 2 * EVERY, STEPS]
    assert mine.detail["parameters"] == 5 and mine.detail["timing"]["optimizer_ms"] > 0


def test_its_loop_is_stopped_early(framework):
    outcome = run(framework, bars=((EVERY, -1.0),))
    assert (outcome.status, outcome.detail["step"]) == ("stopped", EVERY)
    assert math.isfinite(outcome.detail["validation"][-1][1])
