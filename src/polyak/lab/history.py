"""What the store keeps of a comparison, and the comparison made again from that, without the problem's file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from polyak.lab.campaign import Campaign
from polyak.lab.contenders import Contender
from polyak.lab.described import CONFIDENCE, Described, Timed, dimension
from polyak.lab.errors import LabError
from polyak.lab.machine import machine
from polyak.lab.problems import LoadedProblem, Problem
from polyak.lab.spec import Record
from polyak.lab.store import Stored

GIT_SECONDS = 5.0


def describe(
    campaign: Campaign, command: str, margin: float | None = None, confidence: float = CONFIDENCE, looks: int = 1
) -> dict[str, Any]:
    """All that is to be known of a comparison beside its runs, as JSON-able data.

    Args:
        campaign: the comparison.
        command: what was typed, or the call that was made.
        margin: the difference that does not matter, where that was said.
        confidence: of every interval.
        looks: how often, at most, the verdict is looked at while seeds are added.
    """
    return {
        "problems": [_problem(campaign, loaded) for loaded in campaign.problems],
        "contenders": [_contender(campaign, contender) for contender in campaign.contenders.values()],
        "methods": campaign.methods,
        "reference": campaign.reference,
        "spaces": {c.name: {n: asdict(d) for n, d in c.space.items()} for c in campaign.contenders.values()},
        "trials": campaign.trials,
        "reruns": campaign.reruns,
        "seeds": campaign.seeds,
        "most_seeds": campaign.most_seeds,
        **seeds_so_far(campaign, may_grow=campaign.most_seeds is not None),
        "looks": looks,
        "tuning_seed": campaign.tuning_seed,
        "margin": margin,
        "confidence": confidence,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
    }


def seeds_so_far(campaign: Campaign, may_grow: bool) -> dict[str, Any]:
    """The part of a description that changes while seeds are added.

    Args:
        campaign: the comparison as it is now.
        may_grow: whether more seeds may still be added.
    """
    added = [[*place, count] for place, count in campaign.more_seeds.items()]
    return {"more_seeds": added, "may_grow": may_grow}


def described(told: Mapping[str, Any]) -> list[Described]:
    """What a report says of each problem of a comparison that :func:`describe` told of."""
    spaces = {method: {name: dimension(d) for name, d in space.items()} for method, space in told["spaces"].items()}
    words = {name: told[name] for name in ("reference", "margin", "confidence", "command", "machine")}
    words["looks"] = told.get("looks", 1)  # earlier stores have no word for it
    words["self_test"] = len(told["contenders"]) > 1 == len({one["reference"] for one in told["contenders"]})
    date = datetime.fromisoformat(told["date"]).strftime("%Y-%m-%d %H:%M")
    of_problem = ("problem", "description", "metric", "higher_is_better", "target", "steps", "commit")
    shared = {**words, "date": date, "methods": tuple(told["methods"]), "spaces": spaces}
    timed = timed_of(told)
    return [
        Described(**{n: one[n] for n in of_problem}, **shared, timed=timed.get(one["problem"]))
        for one in told["problems"]
    ]


def timed_of(told: Mapping[str, Any]) -> dict[str, Timed]:
    """The times measured after the runs, by problem; none where a comparison has not come so far."""
    return {problem: Timed(**each) for problem, each in told.get("timed", {}).items()}


def commit_of(folder: Path) -> str:
    """The commit of the code in a folder, marked where files have changed since; empty where there is none."""
    git = shutil.which("git")
    if git is None or not folder.is_dir():
        return ""

    def ask(*words: str) -> str:
        asked = subprocess.run(
            [git, "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
        return asked.stdout.strip()

    try:
        commit = ask("rev-parse", "--short=12", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}, changed since" if changed else commit


@dataclass(frozen=True)
class Restored:
    """A comparison as the store knows it; its problems can be named and judged, but not trained.

    Args:
        campaign: the comparison.
        described: its problems, for the report.
        records: its runs so far.
        command: what was typed.
        may_grow: whether it had not ended adding seeds.
    """

    campaign: Campaign
    described: list[Described]
    records: dict[str, Record]
    command: str
    may_grow: bool

    @property
    def missing(self) -> int:
        """How many runs, at most, are still to be made."""
        return self.campaign.total - len(self.records) if self.campaign.due(self.records) else 0

    @property
    def unfinished(self) -> str:
        """What is missing, in words; empty where nothing is."""
        if self.missing:
            return f"the comparison has not ended, up to {self.missing} of {self.campaign.total} runs are missing"
        return "the comparison has not ended, more seeds may be needed" if self.may_grow else ""


def restore(stored: Stored) -> Restored:
    """A comparison and its runs so far.

    Raises:
        LabError: another version described it in another way.
    """
    told = stored.description
    try:
        campaign = _campaign(told)
        # Seeds that a command with another margin or confidence added to the same comparison are not this one's.
        runs = [r for r in stored.runs if r.split != "test" or r.seed in campaign.test_seeds(r.problem, r.method)]
        records = {campaign.spec_of(record).key: _judged_now(campaign, record) for record in runs}
        return Restored(campaign, described(told), records, told["command"], told.get("may_grow", False))
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise LabError(f"the store describes a comparison that cannot be read ({error!r})") from error


def _judged_now(campaign: Campaign, record: Record) -> Record:
    """A run with the step at which it met the target of this comparison; an earlier one may have had another."""
    problem = next(p.problem for p in campaign.problems if p.problem.name == record.problem)
    return replace(record, detail=problem.with_target(record.detail))


def _problem(campaign: Campaign, loaded: LoadedProblem) -> dict[str, Any]:
    problem, path = loaded.problem, loaded.reference.rpartition(":")[0] if ".py:" in loaded.reference else ""
    return {
        "problem": problem.name,
        "description": problem.description,
        "metric": problem.metric,
        "higher_is_better": problem.higher_is_better,
        "target": problem.target,
        "steps": campaign.steps_of(loaded),
        "reference": loaded.reference,
        "source": loaded.digest,
        "commit": commit_of(Path(path).parent) if path else "",
    }


def _contender(campaign: Campaign, contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "reference": contender.reference,
        "defaults": {name: contender.defaults[name] for name in contender.space if name in contender.defaults},
        "fixed": dict(contender.fixed),
        "code": contender.code,
        "tuning_seed": contender.tuning_seed,
        "tried": campaign.tried[contender.name],
    }


def _campaign(told: Mapping[str, Any]) -> Campaign:
    contenders = [
        Contender(
            one["name"],
            one["reference"],
            {name: dimension(d) for name, d in told["spaces"][one["name"]].items()},
            _tupled(one["defaults"]),
            _tupled(one["fixed"]),
            one["code"],
            one["tuning_seed"],
        )
        for one in told["contenders"]
    ]
    made = Campaign(
        [_loaded(one) for one in told["problems"]],
        contenders,
        told["trials"],
        told["seeds"],
        reruns=told["reruns"],
        reference=told["reference"],
        tuning_seed=told["tuning_seed"],
        tried={one["name"]: [_tupled(setting) for setting in one["tried"]] for one in told["contenders"]},
        most_seeds=told.get("most_seeds"),
    )
    return made.with_seeds({(problem, method): count for problem, method, count in told["more_seeds"]})


def _loaded(told: Mapping[str, Any]) -> LoadedProblem:
    problem = Problem(
        name=told["problem"],
        train=_gone,
        metric=told["metric"],
        higher_is_better=told["higher_is_better"],
        steps=told["steps"],
        target=told["target"],
        description=told["description"],
    )
    return LoadedProblem(told["reference"], told["source"], problem)


def _gone(*arguments: Any) -> Any:
    raise LabError("a problem that comes from a store cannot be trained")


def _tupled(value: Any) -> Any:
    """JSON has lists where settings have tuples."""
    if isinstance(value, Mapping):
        return {name: _tupled(entry) for name, entry in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, (list, tuple)) else value
