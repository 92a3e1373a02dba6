"""What a comparison is asked to hold: methods, and what ``--space`` and ``--fix`` say about them, all of it checked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from polyak.declare import Choice
from polyak.lab.contenders import Contender, resolve
from polyak.lab.errors import BadInput, suggestion
from polyak.lab.space import Given, corners, dimension, given, value


def entries(methods: Sequence[str], spaces: Sequence[str] = (), fixes: Sequence[str] = ()) -> list[Contender]:
    """The contenders of a comparison, each with its own name.

    Args:
        methods: what :func:`polyak.lab.contenders.resolve` reads; a text that comes twice counts once.
        spaces: where to look, as of ``--space``: ``lr=1e-5:1e-1:log``, ``adamw.lr=...``.
        fixes: values that are not searched, as of ``--fix``: ``momentum=0.9``.
    """
    asked = list(dict.fromkeys(methods))
    if not asked:
        raise BadInput("name at least one problem and one method")
    chosen = dict(zip(asked, _distinct([resolve(text) for text in asked]), strict=True))
    searched = [given("--space", text) for text in spaces]
    for one in searched:
        where = dimension(one.text, one.where)
        for text in _about(chosen, one):
            chosen[text] = replace(chosen[text], space={**chosen[text].space, one.argument: where})
    for one in (given("--fix", text) for text in fixes):
        _refuse_contradiction(one, searched)
        to = value(one.text, one.where)
        for text in _about(chosen, one):
            left = {name: where for name, where in chosen[text].space.items() if name != one.argument}
            chosen[text] = replace(chosen[text], space=left, fixed={**chosen[text].fixed, one.argument: to})
    for contender in chosen.values():
        _check(contender)
    return list(chosen.values())


def _distinct(found: list[Contender]) -> list[Contender]:
    """The same, with a number behind a name that another has already."""
    seen: dict[str, int] = {}
    named = []
    for contender in found:
        count = seen[contender.name] = seen.get(contender.name, 0) + 1
        named.append(contender if count == 1 else replace(contender, name=f"{contender.name} ({count})"))
    return named


def _about(chosen: Mapping[str, Contender], one: Given) -> list[str]:
    """The methods that an option is about: the one named, or all that have the argument."""
    about = [text for text, c in chosen.items() if one.method in (None, text, c.name, c.reference)]
    if not about:
        raise BadInput(f"{one.where}: {one.method!r} is none of the methods; {suggestion(one.method or '', chosen)}")
    taking = [text for text in about if chosen[text].takes(one.argument)]
    if not taking:
        known = dict.fromkeys(name for text in about for name in chosen[text].taken or ())
        raise BadInput(f"{one.where}: no argument {one.argument!r}; {suggestion(one.argument, known)}")
    return taking


def _refuse_contradiction(fix: Given, searched: Sequence[Given]) -> None:
    for other in searched:
        if other.argument == fix.argument and (other.method == fix.method or None in (other.method, fix.method)):
            raise BadInput(f"{fix.where} and {other.where} contradict each other; leave one of them out")


def _check(contender: Contender) -> None:
    """Refuse what cannot be tuned, and a space that the method would refuse in the middle of things."""
    if not contender.declares and not contender.space and not contender.fixed:
        arguments = f"; its arguments: {', '.join(contender.taken)}" if contender.taken else ""
        raise BadInput(
            f"{contender.name} does not say where to look for its settings: give --space "
            f"{contender.name}.lr=1e-5:1e-1:log, or space = {{'lr': '1e-5:1e-1:log'}} in its file{arguments}"
        )
    for name in contender.space:
        if not contender.takes(name):
            raise BadInput(f"{contender.name}: space has {name!r}; {suggestion(name, contender.taken or ())}")
        _check_kept(contender, name)
    for setting in (corners(contender.space) or [{}]) if contender.probed else []:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender.build([nn.Parameter(torch.zeros(2, 2))], **setting)
        except (TypeError, ValueError) as error:
            shown = ", ".join(f"{name}={v}" for name, v in {**contender.fixed, **setting}.items())
            raise BadInput(f"{contender.name} refuses {shown}: {error}; change --space or --fix") from error


def _check_kept(contender: Contender, name: str) -> None:
    """Refuse choices that no store could keep."""
    searched = contender.space[name]
    for choice in searched.values if isinstance(searched, Choice) else ():
        try:
            json.dumps(choice)
        except (TypeError, ValueError):
            raise BadInput(
                f"{contender.name}: space[{name!r}] has {choice!r}, which a store cannot keep; take numbers, texts, "
                "True, False, None or tuples of them, and let your function make of them what it needs"
            ) from None
