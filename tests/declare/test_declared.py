"""Declared classes: one line an argument, and everything that follows from it."""

import copy
import inspect
import pickle
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.declare import (
    NON_NEGATIVE,
    POSITIVE,
    STATIC_IF_ZERO,
    UNIT,
    Betas,
    Choice,
    Declared,
    Interval,
    Lr,
    Paper,
    Range,
    fills,
    hyper,
    whole,
)

Form = Literal["a", "b"]


class Sampler(Declared):
    """A sampler of a user, which is no optimizer.

    ::

        x <- x - scale * x

    Text behind the equation.
    """

    slug = "sampler"
    paper = Paper("A paper", 2020, "2001.00001")

    scale: Annotated[float, POSITIVE, Range(1e-2, 10.0), "how far"] = 1
    betas: Betas = (0.9, 0.99)
    form: Annotated[Form | None, "which form"] = None
    count: Annotated[int, Interval(1, 9), "how many"] = 3
    _: KW_ONLY
    loud: Annotated[bool, "say so"] = False
    rate: Annotated[float, STATIC_IF_ZERO] = 0.0
    kind: ClassVar[str] = "no field"


class Faster(Sampler):
    """A variant.

    ::

        x <- x - 2 * scale * x
    """

    slug = "faster"
    paper = Paper("Another paper", 2021, "2101.00001")

    scale = 2.0
    extra: Annotated[float, UNIT, Choice((0.0, 1.0)), "more"] = 0.5


class Users(Faster):
    def __init__(self, scale: float, name: str) -> None:
        super().__init__(scale, extra=0.25)
        self.name = name


def test_signature_is_that_of_the_fields() -> None:
    signature = inspect.signature(Faster)
    assert list(signature.parameters) == ["scale", "betas", "form", "count", "extra", "loud", "rate"]
    assert {n: p.default for n, p in signature.parameters.items()} == {
        "scale": 2.0, "betas": (0.9, 0.99), "form": None, "count": 3, "extra": 0.5, "loud": False, "rate": 0.0,
    }  # fmt: skip
    assert signature.parameters["loud"].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.parameters["scale"].annotation is float
    assert list(inspect.signature(Users).parameters) == ["scale", "name"]


def test_values_by_position_and_by_name() -> None:
    made = Faster(3.0, (0.5, 0.6), "b", loud=True)
    assert (made.scale, made.betas, made.form, made.count, made.extra, made.loud) == (
        3.0,
        (0.5, 0.6),
        "b",
        3,
        0.5,
        True,
    )
    assert Faster.scale == 2.0 and Sampler.scale == 1.0
    assert (Users(4.0, "mine").scale, Users(4.0, "mine").extra, Users(4.0, "mine").name) == (4.0, 0.25, "mine")


@pytest.mark.parametrize("make", [lambda: Faster(3.0, extra=0.1), lambda: Users(4.0, "mine")])
def test_copies(make: Any) -> None:
    made = make()
    for twin in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert type(twin) is type(made) and vars(twin) == vars(made)


def test_docs_equation_and_search_follow() -> None:
    assert Sampler.equation == "x <- x - scale * x" and Faster.equation == "x <- x - 2 * scale * x"
    text = inspect.getdoc(Sampler) or ""
    assert "Text behind the equation." in text
    assert "scale: how far, in (0, inf); default 1.0." in text and "form: which form, one of 'a', 'b' or None" in text
    assert text.index("Text behind") < text.index("Args:") < text.index("Raises:")
    assert Sampler.search_space == {"scale": Range(1e-2, 10.0)}
    assert Faster.search_space == {"scale": Range(1e-2, 10.0), "extra": Choice((0.0, 1.0))}
    assert [h.name for h in Faster.reads("extra", "scale")] == ["extra", "scale"]
    assert Faster.reads("scale")[0].default == 2.0
    with pytest.raises(ValueError, match="Faster declares no hyperparameter 'speed'"):
        Faster.reads("speed")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Sampler(scal=1.0), TypeError, "Sampler has no argument 'scal'; did you mean 'scale'"),
        (lambda: Sampler(zzz=1.0), TypeError, "has no argument 'zzz'; it has .*'scale'"),
        (lambda: Sampler(1.0, scale=1.0), TypeError, "two values for 'scale'"),
        (lambda: Sampler(1.0, (0.1, 0.2), "a", 3, True), TypeError, "takes 4 positional arguments, got 5"),
        (lambda: Sampler(-1.0), ValueError, r"Sampler: scale must be in \(0, inf\), got -1.0"),
        (lambda: Sampler(form="c"), ValueError, r"form must be one of \['a', 'b'\], got 'c'"),
        (lambda: Sampler(count=2.5), TypeError, "count must be an integer"),
        (lambda: Users(-1.0, "mine"), ValueError, "Users: scale must be"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def declare(default: Any = 0.5, annotation: Any = Lr, **more: Any) -> type[Declared]:
    return type(
        "Made", (Declared,), {"__annotations__": {"x": annotation}, "x": default, "__module__": __name__, **more}
    )


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: declare(-1.0), ValueError, r"Made\.x: default: x must be in \[0, inf\), got -1.0"),
        (lambda: declare("fast"), TypeError, r"Made\.x: default: x must be a number"),
        (lambda: declare(0.5, Annotated[float, UNIT, Range(0.1, 2.0)]), ValueError, r"Made\.x: search: x .*got 2.0"),
        (lambda: declare(0.5, Annotated[float, UNIT, Range(0.0, 1.0)]), ValueError, r"Made\.x: search: .*no range"),
        (lambda: declare(0.5, Annotated[float, UNIT, Range(0.9, 0.1)]), ValueError, r"Made\.x: search: .*no range"),
        (lambda: declare(0.5, Annotated[float, UNIT, Choice((0.5, 3.0))]), ValueError, r"Made\.x: search: .*got 3.0"),
        (lambda: declare([], list[float]), TypeError, r"Made\.x: .*the values allowed of list\[float\] must be said"),
        (lambda: declare(0.5, "Annotated[Lr, Nowhere]"), TypeError, r"Made\.x: its annotation .* cannot be read"),
        (lambda: declare(slug="made", paper=Paper("P", 2000)), TypeError, "Made: a method needs a docstring"),
        (
            lambda: declare(slug="made", __doc__="D\n\n::\n\n    x\n"),
            TypeError,
            r"Made\.paper: a method names its paper",
        ),
    ],
)
def test_a_declaration_is_checked_when_the_class_is_made(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_field_without_default() -> None:
    with pytest.raises(TypeError, match=r"Bare\.x: a field needs a default"):
        type("Bare", (Declared,), {"__annotations__": {"x": Lr}, "__module__": __name__})


def test_an_argument_may_fill_an_option() -> None:
    class Filled(Declared):
        lr: Lr = 1.0
        aux_lr: Annotated[Lr, fills("lr")] = 0.1
        aux_eps: Annotated[float, NON_NEGATIVE, fills("eps")] = 1e-8

    assert [h.name for h in Filled.arguments] == ["lr", "aux_lr", "aux_eps"]
    assert [(h.name, h.default, h.fills) for h in Filled.hypers] == [("lr", 1.0, ""), ("eps", 1e-8, "")]


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(numbers, numbers, st.booleans(), st.booleans(), numbers)
def test_an_interval_says_what_it_holds(low: float, high: float, low_open: bool, high_open: bool, x: float) -> None:
    inside = (x > low if low_open else x >= low) and (x < high if high_open else x <= high)
    assert (x in Interval(low, high, low_open, high_open)) == inside


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_search_range_stays_inside_the_allowed_one(low: float, high: float, default: float) -> None:
    allowed = Interval(0.2, 0.8)
    annotation = Annotated[float, allowed, Range(low, high)]
    if low < high and all(v in allowed for v in (low, high, default)):
        found = hyper("x", annotation, default)
        assert (found.default, found.search, found.allowed) == (default, Range(low, high), allowed)
        found.check(low, "owner")
        found.check(high, "owner")
    else:
        with pytest.raises(ValueError, match=r"default: x must be in|search: x"):
            hyper("x", annotation, default)


@given(st.one_of(st.integers(0, 9), st.floats(0, 9)))
def test_a_whole_number_is_a_float_where_a_float_is_declared(default: float) -> None:
    found = hyper("x", Annotated[float, Interval(0, 9)], default)
    assert type(found.default) is float
    found.check(4.5, "owner")


@pytest.mark.parametrize("value", [3, torch.tensor(3), np.int64(3)])
def test_a_whole_number_of_any_kind_comes_out_as_one(value: Any) -> None:
    found = whole("steps", value, "Walk")
    assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0, ValueError, r"Walk: steps must be in \[1, inf\), got 0"),
        (2.0, TypeError, r"Walk: steps must be an integer in \[1, inf\), got 2\.0"),
        (True, TypeError, r"Walk: steps must be a number in \[1, inf\), got True"),
        ("2", TypeError, r"Walk: steps must be a number in \[1, inf\), got '2'"),
    ],
)
def test_what_is_no_whole_number_is_named(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        whole("steps", value, "Walk")
