"""Write docs/methods.md from the code: one section a method.

python tools/make_catalogue.py            # write it
python tools/make_catalogue.py --check    # fail if it is out of date
"""

from __future__ import annotations

import sys

import polyak.optim
from polyak.declare import Hyper
from polyak.optim.create import arguments

HEAD = """# Methods

Made from the code by `tools/make_catalogue.py`; the same facts as `polyak show NAME`.

Verified by: what the recorded trajectories come from that a method reproduces. A transcription is of the paper, and an
interpretation of what the paper leaves open: they tell that the code does what we think, and no more.

Which go with FSDP2, DistributedDataParallel, scalers, accumulation and odd weights: [ecosystem.md](ecosystem.md).
"""
TABLE = """
| name | class | paper | year | state, bytes per float32 weight | verified by |
|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """The method's line of the table."""
    method = polyak.optim.get(name)
    paper = f"[{method.paper.title}]({method.paper.link})"
    figures = f"{method.paper.year} | {_bytes(name):g} | {method.evidence}"
    return f"| [`{name}`](#{name}) | `{method.__name__}` | {paper} | {figures} |\n"


def _bytes(name: str) -> float:
    return polyak.optim.get(name).state_bytes_per_parameter()


def _argument(hyper: Hyper) -> str:
    allowed = list(hyper.allowed) if isinstance(hyper.allowed, tuple) else hyper.allowed
    either = " or None" if hyper.optional else ""
    return f"| `{hyper.name}` | `{hyper.default!r}` | {allowed}{either} | {hyper.doc} |\n"


def _state(name: str) -> str:
    kept = [
        f"- `{slot.name}`: {slot.holds}{condition and f' ({condition})'}\n"
        for slot, condition in polyak.optim.get(name).memories()
    ]
    return f"State:\n\n{''.join(kept)}\n"


def section(name: str) -> str:
    """The method's section."""
    method = polyak.optim.get(name)
    table = "".join(_argument(h) for h in arguments(method).values())
    return (
        f"\n## {name}\n\n`polyak.optim.{method.__name__}`: [{method.paper.title}]({method.paper.link}), "
        f"{method.paper.year}.\n\n```text\n{method.equation}\n```\n\n{_state(name)}"
        f"Verified by: {method.evidence} ({', '.join(method.vectors) or 'its equations in the tests'}).\n\n"
        f"| argument | default | allowed | |\n|---|---|---|---|\n{table}"
    )


def catalogue() -> str:
    """The whole page."""
    families = polyak.optim.families()
    tables = [f"\n**{family.capitalize()}**\n{TABLE}{''.join(map(row, names))}" for family, names in families.items()]
    every = sorted(name for names in families.values() for name in names)
    return HEAD + "".join(tables) + "".join(map(section, every))


if __name__ == "__main__":
    from _docs import made  # beside this script

    sys.exit(made("methods.md", catalogue))
