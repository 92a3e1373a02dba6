"""Kernels ahead of time: what ``polyak compile`` compiles, so that no training waits for a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from polyak.aot import Source
from polyak.optim.engine import kernels
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.keeping import Keeping
from polyak.optim.engine.member import Member
from polyak.optim.engine.rule import Options
from polyak.optim.engine.run import coefficients
from polyak.optim.engine.units import form_of
from polyak.optim.groups import REST
from polyak.optim.method import Method

SHAPES = {True: ((64, 64), (64,)), False: ((256, 256), (2**16,))}
"""Shapes of a matrix and a vector: small ones, which one thread is best for, and large ones."""


def sources(
    method: type[Method],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    keeping: Keeping | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Source]:
    """The kernels that a method needs for weights and gradients of a dtype, with its defaults but for ``options``."""
    keeping = keeping or Keeping(method.state_storage)
    given = {h.name: h.default for h in method.hypers} | {"maximize": False} | dict(options or {})
    roles = [{}, {"role": REST}] if method.roles else [{}]
    seen: set[tuple[kernels.Form, bool]] = set()
    for role in roles:
        chain = method.recipe(given | role)
        for small, shapes in SHAPES.items():
            for shape in shapes:
                for form in _forms(chain.for_shape(torch.Size(shape)), given | role, shape, dtype, keeping):
                    if (form, small) not in seen:
                        seen.add((form, small))
                        yield kernels.source(form, small, device or torch.device("cpu"))


def _forms(
    chain: Chain, options: Options, shape: tuple[int, ...], dtype: torch.dtype, keeping: Keeping
) -> Iterator[kernels.Form]:
    questions = chain.questions(options)
    if len(shape) < 2 and any(q.kind == "matrix" for q in questions):
        return
    param = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    member = Member(param, 0, "", chain, questions, keeping, 1)
    if not member.is_compilable:
        return
    names, _ = coefficients(chain, options, 1, torch.device("cpu"))
    outside = sum(not q.is_local for q in questions)
    for level in [*range(outside), None]:
        yield form_of(member, names, dtype, bool(options["maximize"]), True, level)
