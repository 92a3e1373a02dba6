"""Network file systems, by a list of mounts as Linux has it."""

import sqlite3
from pathlib import Path

import pytest

from polyak.lab import compare, mounts
from polyak.lab.store import Store
from tests.lab.conftest import quadratic

LIST = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/ann/fast\\040disk xfs rw 0 0
ann@far:/data /data fuse.sshfs rw 0 0
tmpfs /data tmpfs rw 0 0
//server/share {share} cifs rw 0 0
"""


@pytest.fixture
def share(tmp_path, monkeypatch):
    """A folder that passes for one on another machine."""
    folder, listed = tmp_path / "share", tmp_path / "mounts"
    folder.mkdir()
    listed.write_text(LIST.format(share=folder.resolve()))
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    return folder


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/runs.db", None),
        ("/home/ann/runs.db", "nfs4"),
        ("/homes/runs.db", None),
        ("/home/ann/fast disk/runs.db", None),
        ("/data/runs.db", None),  # the later mount hides the earlier
    ],
)
def test_the_mount_that_a_file_is_on(share, path, name):
    assert mounts.network_of(Path(path)) == name


def test_where_there_is_no_list_nobody_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mounts.network_of(Path("/home/runs.db")) is None


def test_a_store_there_is_warned_of_and_needs_no_shared_memory(share, tmp_path):
    with pytest.warns(UserWarning, match=r"runs.db' is on a network file system \(cifs\), whose locks may"):
        compare(quadratic(), "sgd", trials=1, seeds=1, store=share / "runs.db")
    for path, mode in ((share / "runs.db", "delete"), (tmp_path / "own.db", "wal")):
        Store(path).close()
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == (mode,)


def test_the_command_says_it_in_one_line(share, capsys):
    from typer.testing import CliRunner

    from polyak.lab.commands import app

    arguments = ["compare", "rosenbrock", "--store", str(share / "runs.db"), "--report", str(share / "r.html")]
    done = CliRunner().invoke(app, [*arguments, "--methods", "none-such"])
    assert done.stderr.startswith("the store '") and done.stderr.count("\n") == 1
