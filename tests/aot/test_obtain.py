"""When something is compiled, by whom, and what happens when it cannot be."""

import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import zipfile

import pytest
import torch

from polyak import aot
from polyak.aot import build, obtain
from polyak.aot import source as sources
from tests.aot.sources import F32, anonymous, packages, source, works

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_a_package_is_compiled_once_and_found_again(builder, fresh):
    for _ in range(2):
        assert works(aot.load(source()))  # and dies
    assert builder.built == ["a test's descend"]
    assert [path.name.split("-")[0] for path in packages(fresh)] == ["a_test_s_descend_all"]


def test_without_an_identity_the_graph_is_what_counts(builder):
    """The same text is found by another function; another number in it is another package."""

    def scaled(factor):
        return anonymous(function=lambda a, b: (a * factor, b))

    kernels = [aot.load(scaled(factor)) for factor in (2.0, 2.0, 3.0)]
    assert kernels[0] is kernels[1]
    assert len(builder.built) == 2


def test_a_tensor_that_a_function_holds_is_part_of_its_graph(builder):
    for value in (1.0, 2.0, 2.0):
        held = torch.tensor([value])
        aot.load(anonymous(function=lambda a, b, held=held: (a + held, b)))
    assert len(builder.built) == 2


def test_the_key_holds_all_that_a_package_depends_on(monkeypatch):
    n = aot.Array(F32, ("n",))
    keys = [
        source().key(),
        source(identity="another").key(),
        source(threads="one").key(),
        source(settings=(("max_fusion_size", 1),)).key(),
        source(inputs=(n, n, aot.Array(F32))).key(),
        source(inputs=(n, aot.Array(F32, ("m",)), aot.Array(torch.float64))).key(),
        source(device=torch.device("meta")).key(),
    ]
    for name, value in (("sources_hash", "x"), ("processor", ("x", "y", "z"))):
        with monkeypatch.context() as patch:
            patch.setattr(sources, name, lambda value=value: value)
            keys.append(source().key())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0")
        keys.append(source().key())
    assert len(set(keys)) == len(keys)
    assert source(name="another", function=print).key() == keys[0]


def test_many_threads_compile_each_source_once(builder):
    barrier = threading.Barrier(8)
    kernels = [None] * 8

    def load(i):
        barrier.wait()
        kernels[i] = aot.load(source(name=str(i % 4), identity=str(i % 4)))

    threads = [threading.Thread(target=load, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(builder.built) == ["0", "1", "2", "3"]
    assert all(kernels[i] is kernels[i + 4] and works(kernels[i]) for i in range(4))


def _load_together(barrier, log, builder):
    builder.before = lambda: os.write(log, b"built\n") and None
    barrier.wait()
    os._exit(0 if works(aot.load(source())) else 1)


@forks
def test_processes_that_start_together_compile_once(builder, fresh, tmp_path):
    context = multiprocessing.get_context("fork")
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    barrier = context.Barrier(4)
    processes = [context.Process(target=_load_together, args=(barrier, log, builder)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"
    assert len(packages(fresh)) == 1


@forks
def test_a_process_that_is_killed_while_it_compiles_blocks_nobody(builder, fresh):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        builder.before = lambda: os.write(writer, b"x") and threading.Event().wait()
        aot.load(source())
        os._exit(1)
    os.read(reader, 1)  # it compiles
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert works(aot.load(source()))
    assert sorted(path.suffix for path in fresh.glob("*/*")) == [".lock", ".pt2"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_ends_the_wait_and_leaves_nothing(builder, fresh):
    go_on = threading.Event()

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait()

    builder.before = interrupted
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            aot.load(source())
    signal.signal(signal.SIGINT, before)
    worker = next(thread for thread in threading.enumerate() if thread.name == "polyak-aot")
    go_on.set()
    worker.join()
    assert packages(fresh) == []
    builder.before = lambda: None
    assert works(aot.load(source()))  # and nothing is held against it


def test_switched_off_is_asked_each_time_and_said_once(builder, monkeypatch):
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            with pytest.warns(RuntimeWarning, match=f"switched off .{name}=1.*execution='batched'") as said:
                assert aot.load(source()) is None
                assert aot.load(source()) is None
            assert len(said) == 1
            assert aot.failed() == f"{name}=1"
        assert aot.failed() is None
        assert works(aot.load(source()))


def test_torchs_own_switch_counts(builder):
    import torch._dynamo.config as config

    with config.patch(disable=True), pytest.warns(RuntimeWarning, match="torch._dynamo.config.disable"):
        assert aot.load(source()) is None


def test_without_a_compiler_nothing_is_tried_and_what_is_there_is_loaded(builder, fresh, monkeypatch):
    aot.load(source())
    monkeypatch.setenv("PATH", "")
    with pytest.warns(RuntimeWarning, match="no C.. compiler.*execution='batched'") as said:
        assert aot.load(source(identity="1")) is None
        assert aot.load(source(identity="2")) is None
    assert len(said) == 1
    assert "no C++ compiler" in aot.failed()
    assert works(aot.load(source()))


def test_the_compiler_is_looked_for_where_torch_looks(monkeypatch):
    assert build.missing_compiler() is None
    monkeypatch.setitem(sys.modules, "torch._inductor.config", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in build.missing_compiler()


@pytest.mark.parametrize("make", [source, anonymous])
def test_a_source_that_fails_is_not_tried_again(builder, fresh, make):
    def fail():
        raise RuntimeError("C++ compile error\nmany lines")

    builder.before = fail
    failing = make()
    with pytest.warns(RuntimeWarning, match="is not compiled .RuntimeError: C.. compile error.: polyak runs") as said:
        assert aot.load(failing) is None
        assert aot.load(failing) is None
    assert len(said) == 1
    assert len(builder.built) == 2  # the second time without promises about the CPU
    assert aot.failed(failing) == "RuntimeError: C++ compile error"
    assert aot.failed() is None
    builder.before = lambda: None
    assert aot.load(source(identity="another")) is not None
    assert len(packages(fresh)) == 1


def test_a_function_that_cannot_be_traced_is_said(builder):
    untraceable = anonymous(function=lambda a, b: (a if a.sum() > 0 else b,))
    with pytest.warns(RuntimeWarning, match="a test's products is not compiled"):
        assert aot.load(untraceable) is None
    assert aot.failed(untraceable)
    assert builder.built == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_line_the_first_time(builder, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    aot.load(source())
    aot.load(source())
    shown = sys.stderr.getvalue()
    assert shown == "polyak: compiling a test's descend (once on this machine) ... done after 0 s\n"


def test_a_file_shows_nothing(builder, capsys):
    aot.load(source())
    assert capsys.readouterr() == ("", "")


def test_who_waits_long_is_told_why(builder, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    waiting = obtain._Waiting(source(), threading.Event())
    waiting(obtain.WORD / 2)
    assert sys.stderr.getvalue() == ""
    waiting(obtain.WORD * 2)
    waiting(obtain.WORD * 3)
    assert sys.stderr.getvalue() == "polyak: waiting for another process that compiles a test's descend\n"


def test_prepare_says_what_came_of_each(builder, fresh):
    aot.load(source())

    def fail():
        if builder.built[-1] == "wrong":
            raise RuntimeError("no")

    builder.before = fail
    with pytest.warns(RuntimeWarning, match="wrong is not compiled"):
        results = aot.prepare([source(), source(name="new", identity="new"), source(name="wrong", identity="wrong")])
    assert results == {"a test's descend": "there already", "new": "compiled", "wrong": "RuntimeError: no"}


def test_options_that_torch_does_not_know_are_left_out(monkeypatch):
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["cpp.threads", "cpp.dynamic_threads"])
    found = build._options(source(settings=(("mine", 1),)), many=False, trusting=True)
    assert found == {"cpp.threads": build.THREADS, "cpp.dynamic_threads": True, "mine": 1}


def test_keys_are_plain_text(builder):
    """JSON of the facts: a setting that is no JSON of its own is written as Python shows it."""
    assert len(source(settings=(("a", (1, None)), ("b", {2}))).key()) == 32
    assert json.dumps(source().key())


def test_code_with_a_cxx_library_of_its_own_is_never_loaded(builder, fresh, real, tmp_path):
    with zipfile.ZipFile(package := tmp_path / "package.pt2", "w") as archive:
        archive.writestr("package/data/model.so", b"\x7fELF libc.so.6")
    assert build.has_own_runtime(package)
    assert not build.has_own_runtime(real)

    def refuse():
        raise build.UnsafeCompiler("set CXX to another")

    builder.before = refuse
    with pytest.warns(
        RuntimeWarning, match="is not compiled .UnsafeCompiler: set CXX to another.: polyak runs"
    ) as said:
        assert aot.load(source()) is None
        assert aot.load(source(identity="another")) is None
    assert len(said) == len(builder.built) == 1
    assert aot.failed() == "set CXX to another"
    assert packages(fresh) == []
