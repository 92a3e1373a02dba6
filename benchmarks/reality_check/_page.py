"""docs/reality-check.md from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from _claims import CLAIMS

from polyak import optim

CALLS = ("better", "equivalent", "worse", "unsettled")
HEAD = """# A reality check

<!-- Written by benchmarks/reality_check/run.py from benchmarks/results/reality_check.json. -->

{count} methods on {problems} small problems, under the protocol of `polyak compare`: {trials} trials each in the range
that the method declares, the best three run again on further seeds, then {seeds} seeds on a test split that tuning
never read. AdamW is the reference; its tuning is the same as everybody's. The model of such a check is "A Large Batch
Optimizer Reality Check" (Nado et al. 2021, arXiv:2102.06356): tune all alike, then look what is left.
`benchmarks/reality_check/run.py` goes on with it.

How to read a cell: the median over the test seeds; then the mean difference to AdamW, positive where the method is
better, and its interval, in which Holm's rule and the luck of tuning are counted. **Better** and **worse** are calls;
*equivalent* is within the margin, the spread of AdamW's own seeds; no mark means that these runs do not settle it.
"""
TAIL = """
## What cannot be concluded

- **Nothing about scale.** Most claims are about language models and ImageNet, thousands of times larger and longer
  than a run here of a second or two. A method that gains nothing here may gain there, and the reverse.
- **"Not settled" is not "equal".** With {seeds} seeds and {others} methods held against AdamW at once, a difference
  has to be large to be called. Another {trials} trials might have missed the good settings; at Holm's level the
  intervals are as wide as that, many times the spread of seeds.
- **{trials} trials are few.** Methods with more to tune are found less well by them; that is part of what it costs
  to use them, and it is why the luck of tuning is in the intervals.
- **The ranges are the methods' own.** A best setting at the edge of its range may lie beyond it: `polyak compare`
  warns of it.
- **Times are not compared**: steps were counted, not seconds. `benchmarks/step_time.py` has the times.
"""


def written(found: Mapping[str, Any]) -> str:
    """The whole page."""
    problems = found["problems"]
    names = sorted({name for one in problems.values() for name in one["methods"]})
    numbers = {
        "trials": found["trials"],
        "seeds": found["seeds"],
        "others": len(names) - 1,
        "count": len(names),
        "problems": len(problems),
    }
    parts = [HEAD.format(**numbers), *_verdicts(problems), *_differences(problems, names), *_claims(problems, names)]
    return "\n".join(parts) + TAIL.format(**numbers)


def _verdicts(problems: Mapping[str, Any]) -> list[str]:
    lines = ["## What it says", ""]
    return [*lines, *(f"- **{name}** ({_about(one)}): {_verdict(one)}." for name, one in problems.items()), ""]


def _verdict(one: Mapping[str, Any]) -> str:
    """Which methods are called what; of those that are not settled the number."""
    called: dict[str, list[str]] = {call: [] for call in CALLS}
    for name, judged in one["methods"].items():
        if name != one["reference"]:
            called[judged["call"]].append(f"`{name}`")
    open_ones = called.pop("unsettled")
    parts = [f"{call}: {', '.join(sorted(names))}" for call, names in called.items() if names]
    return "; ".join([*parts, *([f"not settled: {len(open_ones)}"] if open_ones else [])])


def _about(one: Mapping[str, Any]) -> str:
    order = "more is better" if one["higher_is_better"] else "less is better"
    return f"{one['metric']}, {order}, {one['steps']} steps, margin {one['margin']:.2g}"


def _differences(problems: Mapping[str, Any], names: list[str]) -> list[str]:
    head = [
        "## Results, and differences to AdamW",
        "",
        f"| method | {' | '.join(problems)} |",
        f"|---|{'---|' * len(problems)}",
    ]
    return [*head, *(f"| `{n}` | {' | '.join(_cell(one, n) for one in problems.values())} |" for n in names), ""]


def _cell(one: Mapping[str, Any], name: str) -> str:
    judged = one["methods"].get(name)
    if judged is None:
        return ""
    median = "no result" if judged["median"] is None else f"{judged['median']:.4g}"
    if name == one["reference"]:
        return median
    if judged["difference"] is None or judged["low"] is None or judged["high"] is None:
        return f"{judged['call']}, {len(judged['failures'])} runs lost"
    text = f"{median}: {judged['difference']:+.2g} [{judged['low']:+.2g}, {judged['high']:+.2g}]"
    marks = {"better": f"**{text} better**", "worse": f"**{text} worse**", "equivalent": f"*{text}*"}
    return marks.get(judged["call"], text)


def _claims(problems: Mapping[str, Any], names: list[str]) -> list[str]:
    lines = [
        "## Claims, and what was seen here",
        "",
        "| method | its paper | seen here, against AdamW |",
        "|---|---|---|",
    ]
    for name in names:
        paper = optim.get(name).paper
        source = f"{CLAIMS[name]} ([{paper.year}]({paper.link}))"
        lines.append(f"| `{name}` | {source} | {_seen(problems, name)} |")
    return [*lines, ""]


def _seen(problems: Mapping[str, Any], name: str) -> str:
    calls = Counter(
        one["methods"][name]["call"] for one in problems.values() if name in one["methods"] and name != one["reference"]
    )
    if not calls:
        return "the reference"
    return ", ".join(
        f"{'not settled' if call == 'unsettled' else call} on {calls[call]}" for call in CALLS if calls[call]
    )
