"""Does every method train? What a store knows of digits-cnn and stdlib-lm, as docs/outcomes.md.

    python benchmarks/outcomes.py [--workers N] [--quick]         # makes the runs; a night on two cores
    python benchmarks/outcomes.py STORE [STORE ...]               # reads those that others made

The runs are in build/outcomes.db, and the same command goes on where it was stopped; those of `polyak compare` and of
reality_check/run.py do too. Of each method the last comparison counts that is in one of the stores and has all of its
runs. Writes benchmarks/results/outcomes.json, and the page from it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from polyak import lab, optim
from polyak.lab.history import restore
from polyak.lab.report import ProblemReport, summarize
from polyak.lab.store import Store
from polyak.optim.create import KNOWN

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "outcomes.json", ROOT / "docs" / "outcomes.md"
PICTURES, TEXT = "digits-cnn", "stdlib-lm"
STORE = ROOT / "build" / "outcomes.db"
PICTURE_RUNS: dict[str, Any] = {"trials": 8, "seeds": 5}
TEXT_RUNS: dict[str, Any] = {"trials": 5, "seeds": 1, "steps": 60}
LANGUAGE = (
    "adamw", "adan", "ademamix", "cadamw", "lion", "clion", "lionk", "grams", "muon", "cmuon", "namo", "namo_d", "auon",
    "hybrid_auon", "fismo", "m3", "scale", "smmf", "spam", "stable_spam", "lamb", "sgd_sai", "am_adamw", "momo_adam",
    "alphaadam", "anolog", "adatamw",
)  # fmt: skip
"""Methods whose papers train language models, and AdamW."""
ACCURACY = 0.95  # on digits-cnn's test split
REFERENCE = "adamw"
WORSE = 1.03  # times AdamW's loss on stdlib-lm
HEAD = """# Does every method train?

<!-- Written by benchmarks/outcomes.py from benchmarks/results/outcomes.json. -->

Each method at the setting that tuning chose in the range it declares, with as many trials as all others. On
**{pictures}** ({picture_budget}) it should pass {accuracy:.0%} of test accuracy. On **{text}** ({text_budget}), those
whose papers are about language models should come within {worse:.0%} of AdamW's loss; a short run says nothing of long
ones. A cell is the median over the test seeds, **bold** where it falls short. `polyak compare` on a problem of your own
says more.

| method | {pictures}: accuracy | {text}: bits per byte | of AdamW's | setting on {pictures} |
|---|---|---|---|---|
"""


def main() -> None:
    """Make the runs or read the stores, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="*", metavar="STORE")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--store", type=Path, default=STORE, help="of runs that are made here: build/outcomes.db")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--quick", action="store_true", help="two methods, two steps: a test of this script")
    args = parser.parse_args()
    if not args.stores:
        args.store.parent.mkdir(parents=True, exist_ok=True)
        made(args.store, args.workers, args.quick)
    found = outcomes(*(args.stores or [args.store]))
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    args.page.write_text(written(found))


def made(store: Path, workers: int | None, quick: bool) -> None:
    """Make the runs of both problems."""
    known = chain(*optim.families().values())
    for problem, (methods, options) in {PICTURES: (known, PICTURE_RUNS), TEXT: (LANGUAGE, TEXT_RUNS)}.items():
        options = {"trials": 1, "seeds": 1, "steps": 2} if quick else options
        chosen = ["adamw", "lion"] if quick else list(methods)
        lab.compare(problem, chosen, reference=REFERENCE, store=store, workers=workers, timing=False, **options)


def outcomes(*paths: Path) -> dict[str, dict[str, Any]]:
    """What stores found, by problem and method: of each method the last comparison that has all of its runs."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        store = Store(path, read_only=True)
        try:
            known = [one for one in map(restore, store.campaigns()) if not one.missing]
        finally:
            store.close()
        for one in known:
            for problem in summarize(one.described, one.records).problems:
                if problem.described.problem in (PICTURES, TEXT):
                    found.setdefault(problem.described.problem, {}).update(_rows(problem, one.campaign.trials))
    return found


def _rows(problem: ProblemReport, trials: int) -> dict[str, Any]:
    budget = {"steps": problem.described.steps, "trials": trials}
    return {
        one.method: {**budget, "seeds": len(one.metrics), "median": one.median, "setting": one.setting}
        for one in problem.methods
    }


def written(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    pictures, text = found.get(PICTURES, {}), found.get(TEXT, {})
    head = HEAD.format(
        pictures=PICTURES, text=TEXT, accuracy=ACCURACY, worse=WORSE - 1,
        picture_budget=_usual(pictures), text_budget=_usual(text),
    )  # fmt: skip
    names = [name for name in sorted(KNOWN) if name in pictures or name in text]
    base = text.get(REFERENCE, {}).get("median")
    rows = [_cells(name, pictures.get(name), text.get(name), base) for name in names]
    said = []
    if pictures:
        short = [name for name, one in pictures.items() if not (one["median"] or 0.0) > ACCURACY]
        said.append(_short(short, f"pass {ACCURACY:.0%} on {PICTURES}"))
        others = {name: _budget(one) for name, one in sorted(pictures.items()) if _budget(one) != _usual(pictures)}
        if others:
            said.append(
                "With a budget of its own: " + "; ".join(f"{name} {what}" for name, what in others.items()) + "."
            )
    if base:
        far = [name for name, one in text.items() if not (one["median"] or math.inf) <= WORSE * base]
        said.append(_short(far, f"come within {WORSE - 1:.0%} of AdamW on {TEXT}"))
    missing = [name for name in sorted(KNOWN) if name not in pictures]
    if missing:
        said.append(f"Not run on {PICTURES}: {', '.join(missing)}.")
    return head + "\n".join(rows) + "\n\n" + "\n\n".join(said) + "\n"


def _usual(rows: Mapping[str, Any]) -> str:
    """The budget of most methods."""
    return Counter(map(_budget, rows.values())).most_common(1)[0][0] if rows else "not run"


def _budget(one: Mapping[str, Any]) -> str:
    return f"{one['steps']} steps, {one['trials']} trials"


def _cells(name: str, picture: Mapping[str, Any] | None, text: Mapping[str, Any] | None, base: float | None) -> str:
    loss = None if text is None else text["median"]
    share = loss / base if loss and base else None
    cells = [
        "" if picture is None else _figure(picture["median"], (picture["median"] or 0.0) > ACCURACY),
        "" if text is None else _figure(loss, share is not None and share <= WORSE),
        "" if share is None else f"{share:.3f}",
        "" if picture is None else ", ".join(f"{k}={_short_value(v)}" for k, v in (picture["setting"] or {}).items()),
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def _figure(value: float | None, is_met: bool) -> str:
    text = "no result" if value is None else f"{value:.3f}"
    return text if is_met else f"**{text}**"


def _short_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(names: Sequence[str], what: str) -> str:
    return f"Did not {what}: {', '.join(sorted(names))}." if names else f"All {what}."


if __name__ == "__main__":
    main()
