"""The command line: look-ups, bad input, and what it says when a package is missing."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request

import pytest

from polyak import cli, optim
from polyak.lab.history import describe
from polyak.lab.store import Store
from tests.lab.conftest import campaign_of, polyak, quadratic, report_data


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run a command in this process and hold it to one clear line on stderr, an exit code and some words."""

    def fails(arguments, code, *words):
        monkeypatch.setattr(sys, "argv", ["polyak", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        error = capsys.readouterr().err
        assert caught.value.code == code, error
        assert error.startswith("polyak: error: ") and error.count("\n") == 1, error
        assert [word for word in words if word not in error] == [], error

    return fails


def test_list_shows_every_method():
    shown = polyak("list").stdout
    for name in optim.names() + optim.names(layered=True):
        method = optim.get(name)
        line = next(line for line in shown.splitlines() if line.split()[:1] == [name] and method.paper.title in line)
        assert line.split(str(method.paper.year))[1].split() == [
            f"{method.state_bytes_per_parameter():g}",
            *method.evidence.split(),
        ]


def test_compile_prepares_the_kernels_of_methods(monkeypatch, capsys, fails):
    from polyak import aot

    asked = []
    monkeypatch.setattr(aot, "prepare", lambda sources: asked.extend(sources) or {s.name: "compiled" for s in asked})
    monkeypatch.setattr(sys, "argv", ["polyak", "compile", "lion", "muon", "--dtype", "bfloat16"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "lion" in shown and "momentum_ema+orthogonalize" in shown and shown.count(": compiled") == len(asked)
    assert {str(s.inputs[0].dtype) for s in asked} == {"torch.bfloat16"}
    assert {s.threads for s in asked} == {"one", "all"}
    fails(["compile", "lionn"], 2, "lionn", "lion")
    fails(["compile", "lion", "--dtype", "int3"], 2, "int3", "float32")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_show_tells_all_about_a_method(name):
    shown = polyak("show", name).stdout
    method = optim.get(name)
    assert method.paper.title in shown and method.paper.link in shown
    assert all(line.strip() in shown for line in method.equation.splitlines())
    for hyper in method.search_space:
        assert any(line.split()[:1] == [hyper] for line in shown.splitlines())
    assert f"{method.state_bytes_per_parameter():g} bytes" in shown
    assert all(vector in shown for vector in method.vectors)


def test_runs_lists_every_run(tmp_path):
    arguments = ["--methods", "adamw", "--trials", "1", "--seeds", "1", "--steps", "5", "--workers", "1"]
    done = polyak("compare", "rosenbrock", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "polyak-report.html").exists()
    listed = json.loads(polyak("runs", "polyak-runs.db", "--json", cwd=tmp_path).stdout)
    assert [run["split"] for run in listed] == ["validation", "test"]
    for run in listed:
        assert {"key", "problem", "method", "hyperparameters", "seed", "status", "final_metric"} <= set(run)
        assert (run["problem"], run["method"], run["status"]) == ("rosenbrock", "adamw", "finished")
        assert set(run["hyperparameters"]) == set(optim.get("adamw").search_space)
        assert isinstance(run["final_metric"], float)
    table = polyak("runs", "polyak-runs.db", cwd=tmp_path).stdout
    assert all(run["key"][:8] in table for run in listed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-cn"], ["'digits-cn'", "did you mean digits-cnn"]),
        (["rosenbrock", "--methods", "sgd,adanw"], ["'adanw'", "adamw"]),
        (["rosenbrock", "--methods", ","], ["at least one problem and one method"]),
        (["trian.py:problem"], ["'trian.py'", "did you mean train.py"]),
        (["train.py:problem"], ["must return a polyak.lab.Problem, got int"]),
        (["train.py:problm"], ["'problm'", "did you mean problem"]),
        (["rosenbrock", "--report", "nowhere/report.html"], ["no folder 'nowhere'"]),
        (["rosenbrock", "--report", "."], ["is a folder"]),
        (["rosenbrock", "--port", "70000"], ["a live page needs a port from 0 to 65535, got 70000"]),
        (["rosenbrock", "--trials", "0"], ["trials must be at least 1, got 0"]),
        (["rosenbrock", "--seeds", "-3"], ["seeds must be at least 1, got -3"]),
        (["rosenbrock", "--steps", "0"], ["steps must be at least 1, got 0"]),
        (["rosenbrock", "--workers", "-1"], ["workers must be at least 1, got -1"]),
        (["rosenbrock", "--methods", "torch.optim.AdamZ"], ["torch.optim has no 'AdamZ'", "did you mean"]),
        (["rosenbrock", "--methods", "torch.optim.LBFGS"], ["does not say where to look", "--space"]),
        (["rosenbrock", "--space", "rl=0:1"], ["--space rl=0:1", "no argument 'rl'"]),
        (["rosenbrock", "--space", "adamw.lr=0:1:log"], ["must begin above 0"]),
        (["rosenbrock", "--space", "sgd.momentum=0.5:2"], ["sgd refuses", "must be in [0, 1)"]),
        (["rosenbrock", "--fix", "lr"], ["--fix lr", "write argument=value"]),
        (["rosenbrock", "--reference", "adamx"], ["the reference 'adamx'", "did you mean"]),
        (["rosenbrock", "--budget", "30"], ["budget must be a time such as 90s, 30m or 2h, got '30'"]),
        (["rosenbrock", "--budget", "30m", "--trials", "3"], ["--budget and --trials contradict each other"]),
        (["rosenbrock", "--budget", "30m", "--seeds", "3"], ["--budget and --seeds contradict each other"]),
        (["rosenbrock", "--budget", "30m", "--check"], ["--check makes no run", "leave one out"]),
        (["rosenbrock", "--margin", "-1"], ["margin must be a finite number of at least 0, got -1"]),
        (["rosenbrock", "--confidence", "95"], ["confidence must be between 0 and 1, got 95"]),
        (["rosenbrock", "--timeout", "0"], ["timeout must be a number of seconds above 0, got 0"]),
        (["rosenbrock", "--devices", "cuda:99"], ["there is no device 'cuda:99'; this machine has"]),
        (["rosenbrock", "--devices", "cpu, cpu"], ["the device 'cpu' is named twice"]),
        (["rosenbrock", "--address", "auto"], ["is that of a Ray cluster"]),
        (["rosenbrock", "--report", "a.db", "--store", "a.db"], ["report and store are both 'a.db'"]),
        (["rosenbrock", "--report", "train.py"], ["'train.py' exists and is no report of polyak"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(fails, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("def problem():\n    return 1\n")
    fails(["compare", *arguments], 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_a_report_from_the_store_alone(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef make(params, lr):\n    return torch.optim.SGD(params, lr=lr)\n"
        "space = {'lr': '1e-4:1e-3:log'}\n"
        "from polyak.lab.problems import load\nproblem = load('rosenbrock').problem\ndef rose():\n    return problem\n"
    )
    arguments = ["mine.py:rose", "--methods", "adamw,mine.py:make", "--trials", "2", "--seeds", "1", "--steps", "5"]
    done = polyak("compare", *arguments, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = report_data(tmp_path / "polyak-report.html")
    (tmp_path / "mine.py").unlink()
    (tmp_path / "polyak-runs.db").chmod(0o444)
    again = polyak("report", "polyak-runs.db", "--report", "again.html", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert report_data(tmp_path / "again.html") == first
    data = json.loads(polyak("report", "polyak-runs.db", "--format", "json", cwd=tmp_path).stdout)
    assert list(data["rosenbrock"]["methods"]) and data["rosenbrock"]["reference"] == "adamw"
    table = polyak("report", "polyak-runs.db", "--format", "csv", cwd=tmp_path).stdout.splitlines()
    assert table[0].startswith("key,problem,method") and len(table) == 1 + 2 * (2 + 1)
    fails(["report", "polyak-runs.db", "--comparison", "2"], 2, "--comparison must be from 1 to 1")
    fails(["report", "nowhere.db"], 2, "there is no store 'nowhere.db'")
    fails(["report", "polyak-runs.db", "--report", "polyak-runs.db"], 2, "report and store are both")


def test_a_check_says_how_long_it_would_take_and_runs_nothing(tmp_path):
    arguments = ["--methods", "sgd,adamw", "--trials", "3", "--seeds", "2", "--workers", "2", "--check"]
    done = polyak("compare", "rosenbrock", *arguments, cwd=tmp_path)
    assert re.fullmatch(r"rosenbrock: .* s a run, 10 runs, about .* s on 2 workers\n", done.stdout), done.stdout
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])


@pytest.mark.slow
def test_a_problem_without_any_result_is_exit_code_1(tmp_path):
    arguments = ["--methods", "sgd", "--fix", "lr=1e30", "--trials", "1", "--seeds", "1", "--workers", "1"]
    done = polyak("compare", "rosenbrock", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.endswith("rosenbrock: no method came to a result\n")
    assert "s a run, 2 runs, about" in done.stderr.splitlines()[0] and (tmp_path / "polyak-report.html").exists()


@pytest.mark.slow
def test_a_damaged_run_is_named_and_left_out(tmp_path):
    arguments = ["--methods", "adamw", "--trials", "1", "--seeds", "1", "--steps", "5", "--workers", "1"]
    assert polyak("compare", "rosenbrock", *arguments, cwd=tmp_path).returncode == 0
    with sqlite3.connect(tmp_path / "polyak-runs.db") as db:
        db.execute("UPDATE runs SET detail = '{' WHERE split = 'test'")
    listed = polyak("runs", "polyak-runs.db", "--json", cwd=tmp_path)
    assert [run["split"] for run in json.loads(listed.stdout)] == ["validation"]
    assert listed.returncode == 0 and listed.stderr.startswith("1 damaged in polyak-runs.db, left out: ")
    report = polyak("report", "polyak-runs.db", cwd=tmp_path)
    assert report.returncode == 0 and "up to 1 of 2 runs are missing; run: polyak compare" in report.stderr
    assert polyak("compare", "rosenbrock", *arguments, cwd=tmp_path).returncode == 0
    assert polyak("report", "polyak-runs.db", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_the_report_is_there_before_the_table_is_printed(tmp_path):
    arguments = ["--methods", "adamw", "--trials", "1", "--seeds", "1", "--steps", "5", "--workers", "1"]
    command = [sys.executable, "-m", "polyak.cli", "compare", "rosenbrock", *arguments]
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads the table
    subprocess.run(command, stdout=writing, stderr=subprocess.DEVNULL, cwd=tmp_path, check=False, timeout=300)
    os.close(writing)
    assert [m["method"] for m in report_data(tmp_path / "polyak-report.html")[0]["methods"]] == ["adamw"]


def test_bad_names_elsewhere(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(["show", "adamz"], 2, "'adamz'", "did you mean")
    fails(["runs", "nowhere.db"], 2, "there is no store 'nowhere.db'")
    (tmp_path / "text.db").write_text("hello")
    fails(["runs", "text.db"], 1, "file is not a database")
    fails(["compare", "rosenbrock", "--store", "/nowhere/x.db"], 1, "unable to open database")


def test_what_is_no_number_and_no_command():
    assert polyak("compare", "rosenbrock", "--trials", "many").returncode == 2
    assert polyak("shw").returncode == 2


@pytest.mark.slow
def test_a_read_only_store(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "rosenbrock", "--methods", "adamw", "--trials", "1", "--steps", "5"]
    assert polyak(*arguments, "--seeds", "1").returncode == 0
    before = (tmp_path / "polyak-runs.db").read_bytes()
    (tmp_path / "polyak-runs.db").chmod(0o444)
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("nothing is read-only for root")
    fails([*arguments, "--seeds", "2"], 1, "readonly database")
    assert json.loads(polyak("runs", "polyak-runs.db", "--json").stdout)
    assert (tmp_path / "polyak-runs.db").read_bytes() == before
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("typer", ["list"]),
        ("rich", ["list"]),
        ("scipy", ["compare", "rosenbrock"]),
        ("sklearn", ["compare", "digits-cnn"]),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(missing, arguments):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[0] = 'polyak'; from polyak.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and missing in result.stderr
    assert 'pip install "polyak[lab]"' in result.stderr


def test_app_is_there_for_programs():
    from typer import Typer

    assert isinstance(cli.app, Typer)
    with pytest.raises(AttributeError):
        _ = cli.no_such_thing


def live_page_of(folder, *words, until_interrupted):
    """The page that a command serves, which has said where on standard error and ends with exit code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "polyak.cli", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    try:
        url = next(line.split()[-1] for line in process.stderr if line.startswith("live page: "))
        with urllib.request.urlopen(url, timeout=60) as answer:
            page = answer.read().decode()
        if until_interrupted:
            process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(60) == 0
        return page
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_the_live_page_of_a_comparison_ends_with_it(tmp_path):
    words = ["compare", "rosenbrock", "--methods", "adamw", "--trials", "6", "--seeds", "1", "--workers", "1", "--live"]
    page = live_page_of(tmp_path, *words, until_interrupted=False)
    assert "rosenbrock" in page and "runs are missing" in page and 'data-refresh="2.0"' in page


@pytest.mark.slow
def test_the_live_page_of_a_store_ends_with_ctrl_c(tmp_path):
    campaign = campaign_of(quadratic())
    store = Store(tmp_path / "runs.db")
    store.begin(campaign.identity, describe(campaign, "polyak compare"))
    store.close()
    page = live_page_of(tmp_path, "report", "runs.db", "--port", "0", until_interrupted=True)
    assert "the comparison has not ended, up to 10 of 10 runs are missing" in page
    assert 'data-refresh="2.0"' in page and not (tmp_path / "polyak-report.html").exists()
