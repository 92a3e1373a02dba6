"""The page of a comparison while it runs, on 127.0.0.1 and nowhere else.

The page is made of the store as it is, in a thread of its own, only when somebody looks, at most every :data:`EVERY`
seconds, and so seldom that making it takes no more than :data:`SHARE` of the time. Whatever goes wrong with it is said
on the page and stops nothing.
"""

from __future__ import annotations

import errno
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from polyak.lab import html
from polyak.lab.errors import BadInput, LabError, in_one_line
from polyak.lab.history import restore
from polyak.lab.pace import Pace, clock
from polyak.lab.report import summarize
from polyak.lab.store import Store, Stored

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")  # by which a browser may ask, so that no other site can read the page through its own
EVERY = 2.0  # seconds
SHARE = 0.05
MOST_PORTS = 65535
PATIENCE = 10.0  # seconds that a browser may take over its question

Find = Callable[[Store], Stored]


def port_of(live: bool | int) -> int | None:
    """The port that ``live`` asks for: 0 for any that is free, None for no page at all.

    Raises:
        BadInput: it is no port.
    """
    if isinstance(live, bool):
        return 0 if live else None
    if not isinstance(live, int) or not 0 <= live <= MOST_PORTS:
        raise BadInput(f"a live page needs a port from 0 to {MOST_PORTS}, got {live!r}")
    return live


class LivePage:
    """Serves the page from ``with`` on to its end, and says on standard error where.

    Args:
        store: the file of runs.
        port: where to serve; 0, or one that is in use, takes a free one.
        find: reads the comparison from the store.
        pace: how far it is, where that is known.

    Raises:
        LabError: the port may not be used.
    """

    def __init__(self, store: Path, port: int, find: Find, pace: Pace | None = None) -> None:
        self._store, self._find, self._pace = store, find, pace
        self._lock, self._page, self._due = threading.Lock(), b"", 0.0
        self._is_last, self._asked, self._last_given = False, 0.0, threading.Event()
        self._server = _bound(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self._server.server_address[1]}/"

    def __enter__(self) -> LivePage:
        self._thread.start()
        print(f"live page: {self.url}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and time.monotonic() - self._asked < 2 * EVERY:  # who looks is to see the end
            with self._lock:  # a page under way is not the last one
                self._due, self._is_last = 0.0, True
            self._last_given.wait(2 * EVERY)
        self._server.shutdown()
        self._server.server_close()

    def page(self) -> bytes:
        """The page, made anew if the last one is old enough."""
        self._asked = time.monotonic()
        with self._lock:
            is_last = self._is_last
            if time.monotonic() >= self._due:
                begin = time.monotonic()
                self._page = self._made()
                self._due = time.monotonic() + max(EVERY, (time.monotonic() - begin) / SHARE)
        if is_last:
            self._last_given.set()
        return self._page

    def _made(self) -> bytes:
        try:
            runs = Store(self._store, read_only=True)
            try:
                known = restore(self._find(runs))
            finally:
                runs.close()
            ends = self._is_last or not known.unfinished
            report = summarize(known.described, known.records)
            progress = [] if ends else [known.unfinished, *self._under_way()]
            return html.render(report, refresh=None if ends else EVERY, progress=progress).encode()
        except Exception as error:  # of whatever kind: the comparison goes on
            return html.notice(f"the page cannot be made now: {in_one_line(error)}", EVERY).encode()

    def _under_way(self) -> Iterable[str]:
        if self._pace is not None:
            yield self._pace.words()
            for run in list(self._pace.under_way.values()):
                yield f"{run.title}: {run.place}, {clock(run.seconds)}"


def _bound(port: int, page: LivePage) -> _Server:
    for at in (port, 0):
        try:
            return _Server(at, page)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or at == 0:
                reason = error.strerror or error
                raise LabError(f"cannot serve the live page on port {at}: {reason}; name another port") from error
    raise AssertionError  # the second try has returned or raised


class _Server(ThreadingHTTPServer):
    def __init__(self, port: int, page: LivePage) -> None:
        self.page = page
        super().__init__((ADDRESS, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without asking the network for this machine's name
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody went away in the middle of an answer."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: _Server

    def do_GET(self) -> None:
        """Answer with the page."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in NAMES:
            self.send_error(403, "ask for 127.0.0.1 or localhost")
        elif self.path.partition("?")[0] != "/":
            self.send_error(404)
        else:
            self._answer(self.server.page.page())

    def _answer(self, page: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: object) -> None:
        """The terminal has other things to show."""
