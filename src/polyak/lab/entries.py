"""What a comparison is asked to hold: methods, and what ``--space`` and ``--fix`` say of them, all of it checked."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from polyak.declare import Choice, Range
from polyak.lab.contenders import Contender, resolve
from polyak.lab.errors import BadInput, suggestion
from polyak.lab.source import INSTALLED
from polyak.lab.space import Given, asked, corners, plain, searched, value
from polyak.optim.create import KNOWN

Optimizer = str | Callable[..., Any]  # a method, as it may be given
Spaces = str | Iterable[str] | Mapping[str, str | Range | Choice]
Fixes = str | Iterable[str] | Mapping[str, Any]

TWIN_STRIDE = 1000  # between the tuning seeds of a method's names: no self-test repeats the tuning of another


def entries(methods: Iterable[Optimizer], spaces: Spaces = (), fixes: Fixes = ()) -> list[Contender]:
    """The contenders of a comparison, each with its own name.

    Args:
        methods: what :func:`polyak.lab.contenders.resolve` reads, or classes and functions that it would find; one
            that comes twice counts once.
        spaces: where to look, as of ``--space``: ``lr=1e-5:1e-1:log``, ``adamw.lr=...``; or a dict.
        fixes: values that are not searched, as of ``--fix``: ``momentum=0.9``; or a dict.
    """
    texts = list(dict.fromkeys(each if isinstance(each, str) else text_of(each) for each in methods))
    if not texts:
        raise BadInput("name at least one problem and one method")
    chosen = dict(zip(texts, _distinct([resolve(text) for text in texts]), strict=True))
    tuned = asked("--space", "spaces", spaces)
    for one in tuned:
        where = searched(one.said, one.where)
        for text in _about(chosen, one):
            chosen[text] = replace(chosen[text], space={**chosen[text].space, one.argument: where})
    for one in asked("--fix", "fixes", fixes):
        _refuse_contradiction(one, tuned)
        to = plain(one.said, one.where) if isinstance(fixes, Mapping) else value(one.said, one.where)
        for text in _about(chosen, one):
            left = {name: where for name, where in chosen[text].space.items() if name != one.argument}
            chosen[text] = replace(chosen[text], space=left, fixed={**chosen[text].fixed, one.argument: to})
    for contender in chosen.values():
        _check(contender)
    return list(chosen.values())


def twins(found: Sequence[Contender], names: int) -> list[Contender]:
    """One method under several names, each with trials and tuning seeds of its own.

    Args:
        found: the method, alone.
        names: how many.

    Raises:
        BadInput: there are several methods, or not two names.
    """
    if isinstance(names, bool) or not isinstance(names, int) or names < 2:
        raise BadInput(f"self_test must be a number of names from 2, got {names!r}")
    if len(found) > 1:
        several = ", ".join(one.name for one in found)
        raise BadInput(f"self_test compares one method with itself, got {several}; name one in methods")
    named = _distinct([found[0]] * names)
    return [replace(one, tuning_seed=TWIN_STRIDE * i) for i, one in enumerate(named)]


def text_of(method: Callable[..., Any]) -> str:
    """The text by which any process finds a class or a function: a method's name, ``module.name``, ``file.py:name``."""
    for slug, known in KNOWN.items():
        if known is method:
            return slug
    name, module = getattr(method, "__qualname__", ""), sys.modules.get(str(getattr(method, "__module__", "")))
    if module is not None and _reached(module, name) is method:
        if not _is_own(module):
            return _shortest(module.__name__, name, method)
        if getattr(module, "__file__", None) and name.isidentifier():
            return f"{Path(str(module.__file__)).resolve()}:{name}"
    raise BadInput(f"the method {method!r:.80} is known to this process alone; define it at the top of a file")


def _reached(module: types.ModuleType | None, name: str) -> object:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _is_own(module: types.ModuleType) -> bool:
    """Whether it is a script or a file beside it, which other processes find by its path."""
    if module.__name__ == "__main__":
        return True
    return "." not in module.__name__ and not INSTALLED.intersection(Path(module.__file__ or "").parts)


def _shortest(module: str, name: str, method: object) -> str:
    """The name of a class or function where a package offers it, such as torch.optim.AdamW."""
    parts = module.split(".")
    places = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next(f"{place}.{name}" for place in places if _reached(sys.modules.get(place), name) is method)


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
            f"{contender.name}.lr=1e-5:1e-1:log (in Python spaces={{'{contender.name}.lr': '1e-5:1e-1:log'}}), or "
            f"space = {{'lr': '1e-5:1e-1:log'}} in its file{arguments}"
        )
    for name in contender.space:
        if not contender.takes(name):
            raise BadInput(f"{contender.name}: space has {name!r}; {suggestion(name, contender.taken or ())}")
    for setting in (corners(contender.space) or [{}]) if contender.probed else []:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender.build(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), **setting)
        except (TypeError, ValueError) as error:
            shown = ", ".join(f"{name}={v}" for name, v in {**contender.fixed, **setting}.items())
            raise BadInput(
                f"{contender.name} refuses {shown}: {error}; change --space or --fix (in Python spaces or fixes)"
            ) from error
