"""Run every command of README.md and every example, as a reader would, and say which ones fail.

    python tools/check_readme.py            # with the Python of the environment to check

Fenced ``bash`` and ``python`` blocks run in order in one temporary directory, with this Python's environment first on
PATH. A comment on the line above a block changes that:

    <!-- not run: reason -->    the block is listed, not run
    <!-- file: train.py -->     the block is saved under that name for the blocks after it, not run
    <!-- continues -->          a python block that goes on from the python block before it

``make`` commands run in the repository, each once; ``make test`` is only listed, since CI runs it by itself, and so is
``make readme``, which is this script. Examples are the files examples/**/*.py and *.sh, but for names that start with
"_"; a comment ``# not run: reason`` near the top of an example lists it instead.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 1800
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$", re.M | re.S)
DIRECTIVE = re.compile(r"<!-- *(not run|file|continues)(?:: *(.*?))? *-->\s*\Z")
NOT_RUN = re.compile(r"^# not run: *(.+)$", re.M)
BY_CI = {"make test": "CI runs it by itself", "make readme": "this check"}


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    body: str
    directive: str = ""
    argument: str = ""


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        directive = DIRECTIVE.search(text, 0, match.start())
        name, argument = (directive[1], directive[2] or "") if directive else ("", "")
        line = text.count("\n", 0, match.start()) + 1
        yield Block(line, match["language"], textwrap.dedent(match["body"]), name, argument)


def pieces(script: str) -> Iterator[str]:
    """Split a bash script so that each command that starts with ``make`` stands alone."""
    plain: list[str] = []
    for line in script.splitlines():
        if line.startswith("make "):
            yield from ["\n".join(plain)] if plain else []
            plain = []
            yield line.split(" #")[0].strip()
        elif line.strip():
            plain.append(line)
    yield from ["\n".join(plain)] if plain else []


@dataclass
class Checker:
    """Runs things one by one, prints a line for each, and remembers what failed."""

    scratch: Path
    failed: list[str] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    def run(self, label: str, command: list[str], cwd: Path) -> None:
        drop = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONHOME", "PYTHONPATH"}
        env = {key: value for key, value in os.environ.items() if key not in drop}
        env |= {"PATH": f"{Path(sys.prefix, 'bin')}{os.pathsep}{env['PATH']}", "VIRTUAL_ENV": sys.prefix}
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
            problem = f"exit status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            problem, output = f"still running after {LIMIT_S} s", ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        print(f"{'FAILED ' if problem else 'ok     '} {time.perf_counter() - start:6.1f} s  {label}", flush=True)
        if problem:
            self.failed.append(label)
            print(f"--- {problem}\n{output[-8000:]}---", flush=True)

    def skip(self, label: str, reason: str) -> None:
        print(f"not run           {label}: {reason}", flush=True)

    def bash(self, label: str, script: str) -> None:
        for piece in pieces(script):
            name = f"{label}: {piece.splitlines()[0]}"
            if not piece.startswith("make "):
                self.run(name, ["bash", "-euo", "pipefail", "-c", piece], self.scratch)
            elif piece in BY_CI:
                self.skip(name, BY_CI[piece])
            elif piece not in self.made:
                self.made.add(piece)
                self.run(name, ["bash", "-c", piece], ROOT)

    def readme(self, path: Path) -> None:
        program = ""
        for block in blocks(path.read_text(encoding="utf-8")):
            label = f"{path.name}:{block.line}"
            if block.directive == "not run":
                for line in block.body.strip().splitlines():
                    self.skip(f"{label}: {line}", block.argument)
            elif block.directive == "file":
                (self.scratch / block.argument).write_text(block.body, encoding="utf-8")
            elif block.language == "bash":
                self.bash(label, block.body)
            elif block.language == "python":
                program = program + block.body if block.directive == "continues" else block.body
                script = self.scratch / f"readme_line_{block.line}.py"
                script.write_text(program, encoding="utf-8")
                self.run(f"{label}: python block", [sys.executable, str(script)], self.scratch)

    def example(self, path: Path) -> None:
        label = str(path.relative_to(ROOT))
        head = "".join(path.read_text(encoding="utf-8").splitlines(True)[:20])
        if reason := NOT_RUN.search(head):
            self.skip(label, reason[1])
        else:
            self.run(label, ["bash" if path.suffix == ".sh" else sys.executable, str(path)], self.scratch)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="readme-") as scratch:
        checker = Checker(Path(scratch))
        checker.readme(ROOT / "README.md")
        for path in sorted((ROOT / "examples").rglob("*")):
            if path.suffix in {".py", ".sh"} and not path.name.startswith("_"):
                checker.example(path)
    if checker.failed:
        print("failed:", *checker.failed, sep="\n  ")
    return bool(checker.failed)


if __name__ == "__main__":
    sys.exit(main())
