"""Classes whose constructors are declared: annotated fields in, signature, checks, docs and search space out."""

from __future__ import annotations

import difflib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

from typing_extensions import dataclass_transform

from polyak.declare.fields import Argument, hyper, plain
from polyak.declare.hypers import Hyper, Interval, Paper, SearchSpace

MISSING: Any = inspect.Parameter.empty
WIDTH = 112
"""Columns of a line in the ``Args:`` section, without its indentation."""


@dataclass(frozen=True)
class Field:
    """One argument of a declared constructor; ``hyper`` is None where it is no hyperparameter."""

    name: str
    annotation: Any
    default: Any
    kw_only: bool
    words: str
    hyper: Hyper | None = None

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            if self.default is MISSING:
                raise AttributeError(f"{owner.__name__} has no default for {self.name!r}")
            return self.default
        if self.name in instance.__dict__:
            return instance.__dict__[self.name]
        raise AttributeError(instance._elsewhere(self.name))

    def __set__(self, instance: Any, value: Any) -> None:
        instance._set_field(self, value)

    def line(self) -> str:
        """Its line of the docstring."""
        h = self.hyper
        if h is None:
            return f"{self.name}: {self.words}."
        either = " or None" if h.optional and not (isinstance(h.allowed, tuple) and None in h.allowed) else ""
        if isinstance(h.allowed, tuple):
            allowed = f"one of {', '.join(map(repr, h.allowed))}"
        elif isinstance(h.allowed, Interval):
            allowed = f"{'each ' if isinstance(h.default, tuple) else ''}in {h.allowed}"
        else:
            allowed = str(h.allowed)
        kind = "" if h.allowed == (True, False) else f", {allowed}{either}"
        return f"{self.name}: {self.words}{kind}; default {h.default!r}."


@dataclass_transform()
class Declared:
    """Base of classes whose constructor arguments are annotated class fields with defaults.

    ::

        class Lion(Method):
            lr: Annotated[Lr, Range(1e-5, 1e-2)] = 1e-4

    From the fields come ``__init__`` with its signature, the checks of its arguments, the ``Args:`` section of the
    docstring, ``hypers`` (the options they set), ``arguments`` and ``search_space``. Subclasses inherit fields, add
    their own behind them and change defaults by plain assignment. A class with a ``slug`` is a published method:
    it has a ``paper`` and a docstring whose literal block is its ``equation``.

    Raises:
        TypeError: when the class is made: a field without default or of unknown kind, a method without docstring or
            paper. When it is called: an argument that there is not (the nearest is named), twice, or none.
        ValueError: a default or search range, or at a call a value, outside what is allowed.
    """

    slug: ClassVar[str] = ""
    paper: ClassVar[Paper] = Paper("", 0)
    equation: ClassVar[str] = ""
    vectors: ClassVar[Sequence[str]] = ()
    hypers: ClassVar[tuple[Hyper, ...]] = ()
    arguments: ClassVar[tuple[Hyper, ...]] = ()
    search_space: ClassVar[SearchSpace] = {}
    _fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._fields = _read_fields(cls)
        for name in {*inspect.get_annotations(cls), *vars(cls)} & set(cls._fields):
            setattr(cls, name, cls._fields[name])
        cls.arguments = tuple(f.hyper for f in _in_order(cls) if f.hyper is not None)
        own = {h.name for h in cls.arguments}
        filled = [replace(h, name=h.fills, fills="", search=None) for h in cls.arguments if h.fills not in {"", *own}]
        cls.hypers = (*(h for h in cls.arguments if not h.fills), *filled)
        cls.search_space = {h.name: h.search for h in cls.arguments if h.search is not None}
        _document(cls)
        if "__init__" not in vars(cls):
            _give_constructor(cls)

    @classmethod
    def reads(cls, *names: str) -> tuple[Hyper, ...]:
        """The hyperparameters of these names, with this class's defaults: what a rule says that it reads.

        Raises:
            ValueError: a name that the class does not declare.
        """
        known = {h.name: h for h in cls.hypers}
        for name in names:
            if name not in known:
                raise ValueError(f"{cls.__name__} declares no hyperparameter {name!r}; it has {sorted(known)}")
        return tuple(known[name] for name in names)

    @classmethod
    def _unknown(cls, name: str) -> TypeError:
        """The error for an argument that there is not."""
        hint = nearest(name, cls._fields) or f"it has {list(cls._fields)}"
        return TypeError(f"{cls.__name__} has no argument {name!r}; {hint}")

    def _elsewhere(self, name: str) -> str:
        """What the AttributeError says when a field is read that the instance does not hold."""
        return f"this {type(self).__name__} holds no {name!r}"

    def _set_field(self, field: Field, value: Any) -> None:
        self.__dict__[field.name] = value

    def _begin(self, values: dict[str, Any]) -> None:
        """Take the checked arguments; by default they become attributes."""
        for name, value in values.items():
            self.__dict__[name] = value


def _read_fields(cls: type[Declared]) -> dict[str, Field]:
    """Inherited fields, then the class's own; a field said again keeps its place."""
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        found |= vars(base).get("_fields", {})
    kw_only = False
    for name, written in inspect.get_annotations(cls).items():
        if isinstance(written, str) and written.partition("[")[0].endswith("ClassVar"):
            continue
        annotation = _evaluated(cls, name, written)
        if annotation is KW_ONLY:
            kw_only = True
        elif not name.startswith("_") and "ClassVar" not in repr(annotation).partition("[")[0]:
            found[name] = _field(cls, name, annotation, vars(cls).get(name, MISSING), kw_only)
    for name, field in found.items():
        if name in vars(cls) and name not in inspect.get_annotations(cls):
            found[name] = _field(cls, name, field.annotation, vars(cls)[name], field.kw_only)
    return found


def _evaluated(cls: type, name: str, written: Any) -> Any:
    if not isinstance(written, str):
        return written
    module = sys.modules.get(cls.__module__)
    try:
        return eval(written, vars(module) if module else {}, dict(vars(cls)))
    except NameError as error:
        raise TypeError(f"{cls.__name__}.{name}: its annotation {written!r} cannot be read: {error}") from error


def _field(cls: type, name: str, annotation: Any, default: Any, kw_only: bool) -> Field:
    _, notes = plain(annotation)
    argument = next((note for note in notes if isinstance(note, Argument)), None)
    if argument is not None:
        return Field(name, annotation, default, kw_only, argument.words)
    if default is MISSING:
        raise TypeError(f"{cls.__name__}.{name}: a field needs a default; what is no argument is a ClassVar")
    try:
        declared = hyper(name, annotation, default)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{cls.__name__}.{name}: {error}") from error
    return Field(name, annotation, declared.default, kw_only, declared.doc, declared)


def _in_order(cls: type[Declared]) -> list[Field]:
    """The fields in the order of the signature; of the keywords what is no hyperparameter comes last."""
    return sorted(cls._fields.values(), key=lambda field: (field.kw_only, field.kw_only and field.hyper is None))


def literal_block(text: str) -> str:
    """The first literal block (the indented lines behind ``::``) of a docstring; empty if there is none."""
    _, found, rest = inspect.cleandoc(text).partition("::\n")
    lines: list[str] = []
    for line in rest.splitlines() if found else []:
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _document(cls: type[Declared]) -> None:
    """Read the equation from the docstring and write the arguments into it; refuse a method that lacks a part."""
    own = vars(cls)
    text = own.get("__doc__")
    if "slug" in own:
        cls.vectors = tuple(own.get("vectors", ()))
        cls.equation = literal_block(text or "")
        if "paper" not in own:
            raise TypeError(f"{cls.__name__}.paper: a method names its paper")
        if not cls.equation and sys.flags.optimize < 2:  # python -OO takes docstrings away
            raise TypeError(f"{cls.__name__}: a method needs a docstring with its equation as a literal block (::)")
    if not text or not cls._fields:
        return
    lines = [f"    {line}" for f in _in_order(cls) for line in _wrapped(f.line())]
    body, raises, errors = inspect.cleandoc(text).partition("\nRaises:\n")
    args = "\n".join(["Args:", *lines])
    errors = errors if raises else "    ValueError: an argument outside what is allowed."
    cls.__doc__ = f"{body.rstrip()}\n\n{args}\n\nRaises:\n{errors.rstrip()}\n"


def _wrapped(line: str) -> list[str]:
    return [line] if len(line) <= WIDTH else textwrap.wrap(line, WIDTH, subsequent_indent="    ")


def _give_constructor(cls: type[Declared]) -> None:
    fields = _in_order(cls)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = [f.name for f in fields if not f.kw_only]

    def __init__(self: Declared, *args: Any, **kwargs: Any) -> None:
        self._begin(_bound(type(self), positional, args, kwargs))

    parameters = [
        inspect.Parameter(f.name, kinds[f.kw_only], default=f.default, annotation=plain(f.annotation)[0])
        for f in fields
    ]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([itself, *parameters])  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    cls.__init__ = __init__  # type: ignore[method-assign,assignment]


def _bound(cls: type[Declared], positional: list[str], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The value of every field, checked."""
    if len(args) > len(positional):
        raise TypeError(f"{cls.__name__} takes {len(positional)} positional arguments, got {len(args)}")
    given = dict(zip(positional, args, strict=False))
    for name in kwargs:
        if name not in cls._fields:
            raise cls._unknown(name)
        if name in given:
            raise TypeError(f"{cls.__name__} got two values for {name!r}")
    given |= kwargs
    values = {name: given.get(name, field.default) for name, field in cls._fields.items()}
    for name, field in cls._fields.items():
        if values[name] is MISSING:
            raise TypeError(f"{cls.__name__} needs {name}: {field.words}")
        if field.hyper is not None:
            field.hyper.check(values[name], cls.__name__)
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for who wrote a name that there is not: whether the nearest was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
