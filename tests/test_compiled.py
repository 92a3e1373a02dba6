"""Functions that compile at their first call: later ones skip torch.compile, any size is right, failures are told."""

import warnings

import pytest
import torch
from torch import Tensor

from polyak import _compiled
from polyak._compiled import Compiled


def scaled(out: Tensor, parts: list[Tensor], factor: Tensor) -> None:
    out.copy_(factor * (parts[0] + parts[1]))


def compiled() -> Compiled:
    return Compiled(scaled, "polyak_scaled", lambda args: args[:1])


def arguments(size: int) -> tuple[Tensor, list[Tensor], Tensor]:
    return torch.zeros(size), [torch.randn(size), torch.randn(size)], torch.tensor(2.0, dtype=torch.float64)


def test_later_calls_go_to_the_graph_whatever_the_size() -> None:
    function = compiled()
    for size in (64, 64, 7, 100_001):
        out, parts, factor = arguments(size)
        function(out, parts, factor)
        torch.testing.assert_close(out, 2 * (parts[0] + parts[1]))
    assert function.direct is not None
    function._through = None  # torch.compile is not called any more
    out, parts, factor = arguments(33)
    function(out, parts, factor)
    torch.testing.assert_close(out, 2 * (parts[0] + parts[1]))


def test_what_is_written_counts_as_changed() -> None:
    function = compiled()
    for _ in range(2):
        out, parts, factor = arguments(16)
        before = out._version
        function(out, parts, factor)
        assert out._version > before and all(part._version == 0 for part in parts)


def test_a_compiler_that_fails_is_told_once_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "_failed", False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(RuntimeWarning, match="no compiler here"):
        out, parts, factor = arguments(16)
        compiled()(out, parts, factor)
    torch.testing.assert_close(out, 2 * (parts[0] + parts[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, parts, factor = arguments(16)
        compiled()(out, parts, factor)
    torch.testing.assert_close(out, 2 * (parts[0] + parts[1]))


@pytest.mark.parametrize("late", [False, True])
def test_an_error_while_it_first_runs_is_passed_on(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.output_code import CompiledFxGraph

    def exhausted(*_: object) -> None:
        raise MemoryError("no memory here")

    function = compiled()
    if late:  # the graph has run, but what torch keeps to itself has changed
        monkeypatch.setattr(_compiled, "_longest_row", exhausted)
        out, parts, factor = arguments(16)
        function(out, parts, factor)
        torch.testing.assert_close(out, 2 * (parts[0] + parts[1]))
        assert function.direct is None
    else:
        monkeypatch.setattr(CompiledFxGraph, "__call__", exhausted)
        out, parts, factor = arguments(16)
        with pytest.raises(MemoryError):
            function(out, parts, factor)
        assert not out.any()
    assert not _compiled.failed()


def test_an_error_of_a_later_call_is_not_taken_for_a_compiler_that_fails() -> None:
    function = compiled()
    function(*arguments(16))
    out, parts, _ = arguments(16)
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        function(out, parts, None)
    assert not _compiled.failed()
