"""The page of a comparison while it runs."""

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from polyak.lab import comparison, live
from polyak.lab.comparison import Unwatched, compare
from polyak.lab.errors import BadInput, LabError
from polyak.lab.history import describe
from polyak.lab.live import LivePage, port_of
from polyak.lab.pace import Pace
from polyak.lab.store import Store
from polyak.lab.train import make
from tests.lab.conftest import campaign_of, quadratic


def asked(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()


def progress_of(page):
    found = re.search(r'<ul id="progress">(.*?)</ul>', page)
    return re.findall("<li>(.*?)</li>", found[1]) if found else []


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)


class Asking(Unwatched):
    """Looks at the page at every end of a run."""

    def __init__(self, capsys):
        self.capsys, self.url, self.pages = capsys, None, []

    def ended(self, record, here):
        if self.url is None:
            self.url = re.search(r"^live page: (http://127\.0\.0\.1:\d+/)$", self.capsys.readouterr().err, re.M)[1]
        self.pages.append(asked(self.url))


def test_the_page_follows_a_comparison_and_ends_with_it(tmp_path, capsys):
    watcher = Asking(capsys)
    found = compare(quadratic(), ["sgd", "adamw"], trials=2, seeds=2, store=tmp_path / "runs.db", watcher=watcher,
                    live=True)  # fmt: skip
    first, *_, last = watcher.pages
    assert len(watcher.pages) == 8
    assert progress_of(first)[0] == "the comparison has not ended, up to 7 of 8 runs are missing"
    assert progress_of(first)[1].startswith("1/8, 0:0")
    assert "none has a test result on quadratic" in first and first.count(">pending<") == 2
    assert progress_of(last) == [] and found.report.problems[0].sentence in last
    with pytest.raises(urllib.error.URLError):
        asked(watcher.url)


@pytest.fixture
def begun(tmp_path):
    """A store with two of eight runs, one of which is under way, and what finds the comparison in it."""
    campaign = campaign_of(quadratic(), trials=2, seeds=2)
    store = Store(tmp_path / "runs.db")
    store.begin("other", {"not": "read"})
    store.begin(campaign.identity, describe(campaign, "polyak compare"))
    pace = Pace(campaign)
    done, under_way = campaign.due({})[:2]
    store.claim(done)
    pace.ended(store.finish(done, make(quadratic(), done)), True)
    store.note(campaign.identity, done.key, "quadratic")
    store.claim(under_way)
    pace.began(under_way)
    pace.progress(under_way, 12, 30)
    yield store, campaign, pace
    with suppress(LabError):
        store.close()


def page_of(begun, port=0):
    store, campaign, pace = begun
    return LivePage(store.path, port, lambda opened: opened.campaigns(campaign.identity)[0], pace)


def test_what_is_known_and_what_is_under_way(begun, monkeypatch):
    monkeypatch.setattr(live, "EVERY", 2.0)
    with page_of(begun) as page:
        text = asked(page.url)
        page._asked = 0.0  # nobody waits for the end
    assert 'data-refresh="2.0"' in text
    said, pace, run = progress_of(text)
    assert said == "the comparison has not ended, up to 7 of 8 runs are missing"
    assert pace.startswith("1/8, 0:0") and run.startswith("quadratic adamw tuning seed 0: step 12/30, 0:0")
    data = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', text)[1])
    assert [len(method["trials"]) for method in data[0]["methods"]] == [1, 0]


def test_a_page_is_kept_for_a_while(begun, monkeypatch):
    monkeypatch.setattr(live, "EVERY", 1000.0)
    made = []
    with page_of(begun) as page:
        monkeypatch.setattr(page, "_made", lambda: made.append(1) or b"page %d" % len(made))
        assert [asked(page.url) for _ in range(3)] == ["page 1"] * 3
        page._asked = 0.0


def test_who_looks_sees_the_end(begun, monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.5)
    pages = []
    with page_of(begun) as page:
        pages.append(asked(page.url))
        later = threading.Timer(0.2, lambda: pages.append(asked(page.url)))
        later.start()
    later.join()
    assert "data-refresh=" in pages[0].split("<script")[0] and progress_of(pages[0])
    assert "data-refresh=" not in pages[1].split("<script")[0] and not progress_of(pages[1])


def test_what_goes_wrong_is_on_the_page_and_stops_nothing(tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken <b>")

    monkeypatch.setattr(live.html, "render", broken)
    watcher = Asking(capsys)
    found = compare(quadratic(), ["sgd"], trials=1, seeds=1, store=tmp_path / "runs.db", watcher=watcher, live=True)
    assert "cannot be made now: RuntimeError: broken &lt;b&gt;" in watcher.pages[0]
    assert found.report.problems[0].sentence.startswith("use sgd")


def test_only_this_machine_s_browser_gets_an_answer(begun):
    with page_of(begun) as page:
        assert "quadratic" in asked(page.url, Host="localhost:1234")
        for url, headers, code in ((page.url, {"Host": "evil.example"}, 403), (page.url + "etc/passwd", {}, 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked(url, **headers)
            assert refused.value.code == code
        page._asked = 0.0


def test_a_port_in_use_is_left_for_a_free_one(begun):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with page_of(begun, port) as page:
            assert page.url != f"http://127.0.0.1:{port}/" and page.url.startswith("http://127.0.0.1:")


def test_a_refused_port_is_one_line(begun, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(live._Server, "server_bind", refused)
    with pytest.raises(LabError) as error:
        page_of(begun, 80)
    assert str(error.value) == "cannot serve the live page on port 80: Permission denied; name another port"


@pytest.mark.parametrize(("given", "port"), [(False, None), (True, 0), (0, 0), (8080, 8080)])
def test_ports(given, port):
    assert port_of(given) == port


@pytest.mark.parametrize("given", [-1, 65536, "8080", 80.0, None])
def test_what_is_no_port(given, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "plan", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(BadInput, match="a live page needs a port from 0 to 65535, got"):
        compare(quadratic(), ["sgd"], store=tmp_path / "runs.db", live=given)
