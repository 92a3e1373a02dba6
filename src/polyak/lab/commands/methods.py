"""``polyak list``, ``polyak show`` and ``polyak compile``: the methods themselves."""

from __future__ import annotations

import textwrap
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from polyak import aot, optim
from polyak.declare import Choice, Hyper, Range
from polyak.lab import terminal
from polyak.lab.commands.app import app
from polyak.lab.errors import BadInput
from polyak.optim.ahead import sources
from polyak.optim.create import arguments
from polyak.optim.engine.keeping import STORAGES, Keeping


@app.command(name="list")
def list_methods() -> None:
    """List the methods."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "paper", "year", "state, B/param"):
        made.add_column(heading, justify="right" if heading in ("year", "state, B/param") else "left")
    for name in sorted(optim.names() + optim.names(layered=True)):
        method = optim.get(name)
        made.add_row(name, method.paper.title, str(method.paper.year), f"{method.state_bytes_per_parameter():g}")
    terminal.console().print(made)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, see `polyak list`.")]) -> None:
    """Show a method: equation, paper, arguments, state and how it is verified."""
    try:
        method = optim.get(name)
    except ValueError as error:
        raise BadInput(str(error)) from error
    out = terminal.console()
    paper = method.paper
    out.print(f"[bold]{name}[/]  {paper.title} ({paper.year}), {paper.link}\n", soft_wrap=True)
    out.print(textwrap.indent(method.equation, "    "), markup=False, soft_wrap=True)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("argument", "default", "allowed", "tuned over", "meaning"):
        made.add_column(heading)
    for argument, hyper in arguments(method).items():
        searched = _dimension(method.search_space.get(argument))
        made.add_row(argument, str(hyper.default), _allowed(hyper), searched, hyper.doc)
    out.print(made)
    out.print(f"state: {method.state_bytes_per_parameter():g} bytes per float32 parameter")
    for slot, condition in method.memories():
        out.print(f"    {slot.name}: {slot.holds}{condition and f' ({condition})'}", markup=False, soft_wrap=True)
    out.print(f"verified by: {', '.join(method.vectors) or 'no vectors'}", markup=False)


def _allowed(hyper: Hyper) -> str:
    allowed = " | ".join(map(repr, hyper.allowed)) if isinstance(hyper.allowed, tuple) else str(hyper.allowed)
    return f"{allowed} | None" if hyper.optional else allowed


def _dimension(dimension: Range | Choice | None) -> str:
    if dimension is None:
        return ""
    if isinstance(dimension, Choice):
        return " | ".join(map(str, dimension.values))
    return f"{dimension.low:g} .. {dimension.high:g}{', log' if dimension.log else ''}"


@app.command(name="compile")
def compile_ahead(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods; by default all of them.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16 or float64.")] = "float32",
    state_storage: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
) -> None:
    """Compile the kernels of methods now, into the cache (POLYAK_CACHE), so that no training waits for it."""
    weight = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if dtype not in weight:
        raise BadInput(f"dtype must be one of {list(weight)}, got {dtype!r}")
    if state_storage not in STORAGES:
        raise BadInput(f"state_storage must be one of {list(STORAGES)}, got {state_storage!r}")
    try:
        classes = [optim.get(name) for name in methods or optim.names()]
    except ValueError as error:
        raise BadInput(str(error)) from None
    keeping = Keeping(state_storage)
    found = [s for method in classes for s in sources(method, weight[dtype], keeping=keeping)]
    results = aot.prepare(found)
    for name, result in results.items():
        typer.echo(f"{name}: {result}")
    if any(result not in ("compiled", "there already") for result in results.values()):
        raise typer.Exit(1)
