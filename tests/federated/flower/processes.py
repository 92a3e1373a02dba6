"""Flower's own processes on loopback, in folders of a test's own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[3]
APP = ROOT / "examples" / "flower"
LIMIT_S = 400


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(done: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    end = time.monotonic() + limit_s
    while not (found := done()):
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.2)
    return found


class Flower:
    """A SuperLink and SuperNodes; all that it started is ended with it."""

    def __init__(self, folder: Path, simulated: int = 0) -> None:
        self.folder, self.port, self.simulated, self.started = folder, free_port(), simulated, {}
        home = folder / "home"
        home.mkdir()
        options = f"options.num-supernodes = {simulated}\noptions.backend.client-resources.num-cpus = 1\n"
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n[superlink.test]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n{options if simulated else ""}'
        )
        self.env = os.environ | {
            "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def __enter__(self) -> "Flower":
        self.start_link()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in list(self.started):
            self.kill(name)

    def start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.started[name] = subprocess.Popen(
            command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """At once, with all that it started."""
        process = self.started.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start_link(self) -> None:
        kind = ["--simulation"] if self.simulated else ["--database", str(self.folder / "link.db")]
        self.start(
            "link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
            "--disable-runtime-dependency-installation", *kind,
        )  # fmt: skip
        until(self._answers, "the SuperLink", 120)

    def start_node(self, part: int, parts: int) -> None:
        self.start(
            f"node{part}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port",
            str(free_port()), "--node-config", f"partition-id={part} num-partitions={parts}",
        )  # fmt: skip

    def run(self, name: str, **config: Any) -> None:
        """``flwr run``, as a process of that name, whose log ends when the run does."""
        words = " ".join(f"{key.replace('_', '-')}={value!r}" for key, value in config.items())
        self.start(name, "flwr", "run", str(APP), "test", "--stream", "-c", words)

    def _answers(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0
