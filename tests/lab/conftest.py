"""A problem that takes milliseconds, and ways to compare on it with and without processes."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak.lab.campaign import Campaign
from polyak.lab.described import Described
from polyak.lab.entries import entries
from polyak.lab.history import describe, described
from polyak.lab.html import render
from polyak.lab.problems import LoadedProblem, Problem
from polyak.lab.report import Report, summarize
from polyak.lab.spec import Record, versions
from polyak.lab.train import make
from tests.lab import synthetic


def quadratic(**changes: Any) -> Problem:
    """Half the squared distance to a target; seeds are starting points, batches add a little noise."""

    def train_batches(seed):
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield 0.01 * torch.randn(4, generator=generator)

    def loss(model, batch):
        return 0.5 * (model.weight[0] - torch.arange(4.0) + batch).square().sum()

    problem = Problem(
        name="quadratic",
        build_model=lambda seed: nn.Linear(4, 1, bias=False),
        train_batches=train_batches,
        loss=loss,
        evaluate=lambda model, split: loss(model, 0.1 * (split == "test")).item(),
        metric="distance",
        higher_is_better=False,
        target=0.5,
        steps=30,
    )
    return replace(problem, **changes)


def campaign_of(*problems: Problem, methods: tuple[str, ...] = ("sgd", "adamw"), trials=3, seeds=2, **more) -> Campaign:
    loaded = [LoadedProblem(problem.name, f"digest of {problem.name}", problem) for problem in problems]
    return Campaign(loaded, entries(methods), trials, seeds, **more)


def run_here(campaign: Campaign, until: int | None = None) -> dict[str, Record]:
    """Make the runs of a comparison in this process, without a store."""
    problems = {loaded.reference: loaded.problem for loaded in campaign.problems}
    records: dict[str, Record] = {}
    while (due := campaign.due(records)) and (until is None or len(records) < until):
        records[due[0].key] = record_of(due[0], problems[due[0].reference])
    return records


def record_of(spec, problem: Problem) -> Record:
    outcome = make(problem, spec)
    run = (spec.key, spec.problem, spec.method, spec.setting, spec.seed, spec.split, spec.steps, versions())
    return Record(*run, outcome.status, outcome.metric, outcome.detail)


def report_of(campaign: Campaign, records: dict[str, Record]) -> Report:
    """The report on a comparison that was made without a store."""
    return summarize(described(describe(campaign, "polyak compare")), records)


def polyak(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "polyak.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def report_data(page: Path) -> Any:
    """The data in an HTML report."""
    return json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', page.read_text())[1])


def without_times(data: Any) -> Any:
    """A report's data without what a clock measured."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "timing"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


@pytest.fixture(scope="session")
def records() -> tuple[Campaign, dict[str, Record]]:
    """A finished comparison."""
    campaign = campaign_of(quadratic())
    return campaign, run_here(campaign)


@pytest.fixture(scope="session")
def many() -> tuple[Described, dict[str, Record]]:
    """Twenty methods on one problem, synthetic."""
    described = synthetic.described(20)
    return described, synthetic.records(described)


@pytest.fixture(scope="session")
def page(many) -> str:
    """The page of twenty methods."""
    described, records = many
    return render(summarize([described], records))
