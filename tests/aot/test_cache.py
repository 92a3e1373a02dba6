"""The folder of packages: where it is, who may write it, what of it is believed."""

import errno
import os
import stat
import time

import pytest

from polyak import aot
from polyak.aot import cache
from polyak.aot.source import version
from tests.aot.sources import packages, source, works

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners and modes of files")


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("POLYAK_CACHE", "~/mine")
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.delenv("POLYAK_CACHE")
    assert cache.folder() == tmp_path / "xdg" / "polyak"
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache.folder() == tmp_path / ".cache" / "polyak"


@posix
def test_a_new_folder_and_its_files_are_the_users_alone(builder, fresh):
    before = os.umask(0)
    try:
        aot.load(source())
    finally:
        os.umask(before)
    (package,) = packages(fresh)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (fresh, package.parent, package)]
    assert modes == [0o700, 0o700, 0o600]


@posix
@pytest.mark.parametrize(
    ("owner", "mode", "right"),
    [(1000, 0o700, True), (1000, 0o755, True), (0, 0o755, True), (1000, 0o770, False), (1000, 0o702, False),
     (0, 0o777, False), (1001, 0o700, False)],
)  # fmt: skip
def test_only_what_no_one_else_writes_is_trusted(monkeypatch, owner, mode, right):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert cache.trusted(os.stat_result((mode, 0, 0, 0, owner, 0, 0, 0, 0, 0))) is right


@posix
def test_a_folder_that_others_may_write_is_not_used_and_said_once(builder, fresh):
    fresh.mkdir()
    fresh.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=f"{fresh}.*others may write it.*POLYAK_CACHE") as said:
        kernel = aot.load(source())
        aot.load(source(identity="another"))
    assert len(said) == 1
    assert works(kernel)
    assert list(fresh.iterdir()) == []
    assert kernel.path.parent == fresh.parent / "own"


def test_a_folder_that_cannot_be_made_serves_this_process_alone(builder, fresh, monkeypatch):
    (fresh.parent / "file").touch()
    monkeypatch.setenv("POLYAK_CACHE", str(fresh.parent / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        kernel = aot.load(source())
    assert works(kernel)
    del kernel
    assert works(aot.load(source()))  # found in the temporary folder
    assert len(builder.built) == 1


def test_a_full_disk_serves_this_process_alone(builder, fresh, monkeypatch):
    put = cache.Shelf.put

    def full(shelf, *what):
        if shelf.root == fresh:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(shelf, *what)

    monkeypatch.setattr(cache.Shelf, "put", full)
    with pytest.warns(RuntimeWarning, match="cannot keep.*No space left"):
        assert works(aot.load(source()))
    assert packages(fresh) == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path):
    elsewhere = path.parent.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


SPOILT = {
    "truncated": (truncate, "is damaged"),
    "one bit": (garble, "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "writable": (lambda path: path.chmod(0o666), "no file of this user's own"),
    "link": (link, "cannot be read"),
}


@posix
@pytest.mark.parametrize("kind", SPOILT)
def test_a_package_that_is_not_right_is_not_loaded_but_compiled_anew(builder, fresh, kind):
    spoil, words = SPOILT[kind]
    aot.load(source())
    (package,) = packages(fresh)
    spoil(package)
    with pytest.warns(RuntimeWarning, match=f"{words}.*compiled anew"):
        kernel = aot.load(source())
    assert works(kernel)
    assert len(builder.built) == 2
    assert packages(fresh) == [kernel.path]
    assert not kernel.path.is_symlink()


def test_a_package_that_does_not_load_is_compiled_anew(builder, fresh):
    kept, builder.package = builder.package, fresh.parent / "broken"
    builder.package.write_bytes(b"whole, by its sum, and no package")
    with pytest.warns(RuntimeWarning, match="is not compiled"):
        assert aot.load(source()) is None
    assert len(packages(fresh)) == 1
    builder.package = kept
    aot.obtain._state.by_key.clear()  # as another process would find it
    with pytest.warns(RuntimeWarning, match="does not load"):
        assert works(aot.load(source()))
    assert len(packages(fresh)) == 1


def test_packages_of_other_versions_go_when_nobody_used_them_for_long(builder, fresh):
    week = cache.UNUSED_DAYS * 86400
    folders = {name: fresh / name for name in ("torch1-polyak1", "torch2-polyak2", "mine")}
    for name, folder in folders.items():
        folder.mkdir(parents=True, mode=0o700)
        (folder / "x.pt2").touch()
        age = week - 3600 if name == "torch2-polyak2" else week + 3600
        os.utime(folder, (time.time() - age,) * 2)
    fresh.chmod(0o700)
    aot.load(source())
    assert sorted(path.name for path in fresh.iterdir()) == sorted(["mine", "torch2-polyak2", version()])


def test_using_a_package_keeps_its_folder_young(builder, fresh):
    aot.load(source())
    (package,) = packages(fresh)
    os.utime(package.parent, (0, 0))
    aot.load(source())
    assert package.parent.stat().st_mtime > 0
