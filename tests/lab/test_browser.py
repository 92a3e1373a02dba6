"""The page as a browser lays it out: nothing is out of sight on a phone, and it follows its comparison."""

import re
import shutil
import subprocess

import pytest

from polyak.lab import html, live
from polyak.lab.live import LivePage
from polyak.lab.report import summarize
from tests.lab import synthetic

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script></body>"
FRAME = """<iframe src="page.html" style="width:{}px;height:900px;border:0"></iframe>
<script>onmessage = (event) => {{ document.title = event.data.join(" of ") }}</script>"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


def chromium(*arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page of twenty methods on two problems."""
    both = [synthetic.described(20, problem=name) for name in ("digits", "words")]
    records = {key: record for each in both for key, record in synthetic.records(each).items()}
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(html.render(summarize(both, records)).replace("</body>", MEASURE))
    return path


@pytest.mark.parametrize("width", [390, 800, 1200])
def test_nothing_is_wider_than_the_window(file, width):
    frame = file.with_name(f"{width}.html")  # a window of its own would be at least 500 wide
    frame.write_text(FRAME.format(width))
    page = chromium("--window-size=1400,900", "--dump-dom", frame.as_uri())
    needed, given = map(int, re.search(r"<title>(\d+) of (\d+)</title>", page).groups())
    assert needed <= given == width


def test_a_script_adds_buttons_and_breaks_nothing(file):
    page = chromium("--dump-dom", file.as_uri())
    assert page.count(">zoom in</button>") == 7  # the profile; of each problem two curves and what tuning finds
    assert page.count('title="let this method stand out"') == 40


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext")
def test_print_begins_on_the_first_page_and_cuts_no_column(file, tmp_path):
    pdf = tmp_path / "page.pdf"
    chromium(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", file.as_uri())
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    first = text.split("\f")[0]
    assert "use adamw" in first and "All problems" in first
    columns = " ".join(re.findall(r"^.*state.*$|^.*B/param.*$|^.*lost.*$|^.*runs.*$", text, re.M))
    assert "B/param" in columns and "lost" in columns


def test_a_live_page_takes_over_what_is_new_and_stops_at_the_end(tmp_path, monkeypatch):
    """Time in the browser is made to pass at once; each question is answered with the next page, then with none."""
    described = synthetic.described(2)
    records = synthetic.records(described, lost=False)
    none, whole = summarize([described], {}), summarize([described], records)
    pages = [
        html.render(none, 1.0, ["0/34"]),
        html.render(none, 1.0, ["1/34"]),
        html.render(whole, 1.0, ["34/34"]),
        html.render(whole),
        "asked once too often",
    ]
    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    for first in range(3):
        rest = iter(pages[first:])
        with LivePage(tmp_path / "runs.db", 0, lambda opened: pytest.fail("it was asked for")) as page:
            monkeypatch.setattr(page, "_made", lambda rest=rest: next(rest).encode())
            shown = chromium("--virtual-time-budget=20000", "--dump-dom", page.url)
            page._asked = 0.0
        assert whole.problems[0].sentence.split(";")[0] in shown.split("<script")[0]
        assert 'id="progress"' not in shown.split("<script")[0]
        assert [*rest] == pages[4:]
