"""A training script of one's own as a problem: the four lines marked "changed" differ, those marked "new" were added.

polyak compare examples/compare_script.py:problem --methods adamw,lion
"""

import subprocess
import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

from polyak.lab import Problem  # new

EPOCHS, BATCH, ACCUMULATE, CLIP = 4, 32, 2, 1.0
SPLITS = {"train": slice(0, 1088), "validation": slice(1088, 1440), "test": slice(1440, 1797)}


class Digits(Dataset):
    """Handwritten digits; those for training are moved about a little."""

    def __init__(self, split):
        data, rows = load_digits(), SPLITS[split]
        self.images = torch.tensor(data.images[rows], dtype=torch.float32)[:, None] / 16
        self.labels = torch.tensor(data.target[rows])
        self.moves = split == "train"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        shift = torch.randint(-1, 2, (2,)).tolist() if self.moves else [0, 0]
        return self.images[i].roll(shift, (1, 2)), self.labels[i]


def batches(split):
    return DataLoader(Digits(split), BATCH, shuffle=split == "train", num_workers=2, drop_last=split == "train")


@torch.no_grad()
def accuracy(model, split):
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in batches(split)]
    model.train()
    return torch.cat(right).mean().item()


def train(make_optimizer, seed, report, split):  # changed; was: def train(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = make_optimizer(model)  # changed; was: optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rates, loader = [group["lr"] for group in optimizer.param_groups], batches("train")
    updates = len(loader) // ACCUMULATE
    schedule = OneCycleLR(optimizer, rates, epochs=EPOCHS, steps_per_epoch=updates, cycle_momentum=False)
    best, checkpoint = 0.0, None
    for epoch in range(1, EPOCHS + 1):
        for i, (images, labels) in enumerate(loader, 1):
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model(images), labels)
            (loss / ACCUMULATE).backward()
            if i % ACCUMULATE == 0:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        score = accuracy(model, "validation")
        report(epoch * updates, score, loss=loss)  # changed; was: print(f"epoch {epoch}: {score:.3f}")
        if score >= best:
            best, checkpoint = score, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(checkpoint)
    return accuracy(model, split)  # changed; was: return accuracy(model, "test")


def problem():  # new
    return Problem(name="my digits", train=train, metric="accuracy", higher_is_better=True, target=0.9)  # new


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        options = ["--methods", "adamw,lion", "--trials", "2", "--seeds", "2", "--workers", "2"]
        places = ["--store", f"{folder}/runs.db", "--report", f"{folder}/report.html"]
        command = [sys.executable, "-m", "polyak.cli", "compare", f"{__file__}:problem", *options, *places]
        sys.exit(subprocess.run(command).returncode)
