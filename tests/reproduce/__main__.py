"""``python -m tests.reproduce FOLDER [NAME ...]``: the largest relative error of each vector, or their recomputation.

With ``--out DIR`` the arrays go to ``DIR/NAME.npz`` under the recorded names, by the first of the execution modes.
Ends with 1 if a vector is off or unknown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from tests.reproduce.run import EXECUTIONS, check, executions_of, outcome, write
from tests.reproduce.vector import Unknown, Vector, names_in


def main(arguments: list[str] | None = None) -> int:
    """Recompute vectors; the exit code."""
    options = _parser().parse_args(arguments)
    if not options.folder.is_dir():
        print(f"{options.folder} is no folder", file=sys.stderr)
        return 2
    names = options.names or names_in(options.folder)
    counts = {"reproduced": 0, "off": 0, "unknown": 0}
    for name in names:
        state, words = _one(options.folder, name, options.execution, options.out)
        counts[state] += 1
        print(f"{name}: {words}", flush=True)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return int(counts["off"] + counts["unknown"] > 0 or not names)


def _one(folder: Path, name: str, execution: str | None, out: Path | None) -> tuple[str, str]:
    """State and words of one vector."""
    try:
        vector = Vector(folder, name)
        modes = executions_of(vector, execution)
        if out is None:
            return check(vector, modes)
        write(vector, outcome(vector, modes[0]), out / f"{name}.npz")
        return "reproduced", f"written to {out / f'{name}.npz'}"
    except Unknown as reason:
        return "unknown", f"unknown: {reason}"
    except Exception as error:  # the other vectors are still to be heard
        return "off", f"off: {type(error).__name__}: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.reproduce", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where NAME.json, NAME.npz and inputs.npz lie")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the vectors; all of the folder if none is named")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/NAME.npz instead of comparing")
    parser.add_argument("--execution", choices=EXECUTIONS, help="one mode of the optimizers instead of all three")
    return parser


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
