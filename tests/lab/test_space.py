"""Search spaces as a user writes them."""

import pytest

from polyak.declare import Choice, Range
from polyak.lab.errors import BadInput
from polyak.lab.space import asked, corners, declared, dimension, given, plain, searched, value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1e-5:1e-1:log", Range(1e-5, 1e-1, log=True)),
        ("0.8:0.999", Range(0.8, 0.999, log=False)),
        ("-1:1:linear", Range(-1.0, 1.0, log=False)),
        ("0.8,0.9,0.95", Choice((0.8, 0.9, 0.95))),
        ("(0.9,0.99), (0.95,0.98)", Choice(((0.9, 0.99), (0.95, 0.98)))),
        ("original,match_rms_adamw", Choice(("original", "match_rms_adamw"))),
        ("True,False", Choice((True, False))),
        ("0,1,-1", Choice((0, 1, -1))),
    ],
)
def test_dimensions(text, found):
    assert dimension(text, "here") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.1", "one value leaves nothing to search"),
        ("a:b", "a:b are not two numbers"),
        ("1:0", "from a smaller to a larger"),
        ("nan:1", "from a smaller to a larger"),
        ("0:1:log", "must begin above 0, got 0"),
        ("1:2:lin", "the scale must be one of ['log', 'linear'], got 'lin'"),
        ("1,,2", "cannot be read as values"),
        ("f(1),2", "cannot be read as values"),
        ("1:2:log:3", "the scale must be one of"),
    ],
)
def test_what_is_no_dimension_is_one_line(text, words):
    with pytest.raises(BadInput, match=r"^--space lr") as caught:
        dimension(text, f"--space lr={text}")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "method", "argument"),
    [
        ("lr=1", None, "lr"),
        ("adamw.lr=1", "adamw", "lr"),
        ("torch.optim.AdamW.lr=1", "torch.optim.AdamW", "lr"),
        ("sub/mine.py:make.lr=1", "sub/mine.py:make", "lr"),
        ("lr=a=b", None, "lr"),
    ],
)
def test_of_which_method_an_option_is(text, method, argument):
    found = given("--fix", text)
    assert (found.method, found.argument, found.where) == (method, argument, f"--fix {text}")


@pytest.mark.parametrize("text", ["lr", "lr=", "=1", "adamw.=1", "adamw.l r=1"])
def test_what_is_no_option(text):
    with pytest.raises(BadInput, match=r"write argument=value, as --space lr=1e-5:1e-1:log or --space adamw.lr"):
        given("--space", text)


def test_one_value_is_fixed():
    assert value("0.9", "here") == 0.9
    assert value("(0.9, 0.99)", "here") == (0.9, 0.99)
    with pytest.raises(BadInput, match="fix one value, a tuple in brackets; got 2"):
        value("0.9,0.99", "here")


def test_a_file_says_it_as_text_or_as_objects():
    space = declared({"lr": "1e-3:1:log", "rho": Range(0.1, 0.2), "kind": Choice(("a", "b"))}, "mine.py:make")
    assert space == {"lr": Range(1e-3, 1.0), "rho": Range(0.1, 0.2), "kind": Choice(("a", "b"))}
    with pytest.raises(BadInput, match=r"space\['lr'\] is 0.1; write low:high:log"):
        declared({"lr": 0.1}, "mine.py:make")
    with pytest.raises(BadInput, match="space must be a dict"):
        declared(["lr"], "mine.py:make")


def test_corners_hold_both_ends_and_every_choice():
    found = corners({"lr": Range(1e-3, 1.0), "m": Choice((1, 2, 3))})
    assert {setting["lr"] for setting in found} == {1e-3, 1.0} and {setting["m"] for setting in found} == {1, 2, 3}
    assert corners({}) == []


def test_what_is_asked_of_arguments_is_text_or_a_dict():
    one = given("--space", "lr=1:2")
    assert asked("--space", "spaces", "lr=1:2") == asked("--space", "spaces", ["lr=1:2"]) == [one]
    found = asked("--fix", "fixes", {"eps": 1e-6, "torch.optim.AdamW.betas": (0.9, 0.99)})
    assert [(each.method, each.argument, each.said) for each in found] == [
        (None, "eps", 1e-6), ("torch.optim.AdamW", "betas", (0.9, 0.99)),
    ]  # fmt: skip
    assert found[1].where == "fixes['torch.optim.AdamW.betas']"
    with pytest.raises(BadInput, match=r"fixes: 'l r' is no argument; write 'lr', or 'adamw\.lr'"):
        asked("--fix", "fixes", {"l r": 1})
    with pytest.raises(BadInput, match=r"fixes must be a dict like \{'momentum': 0.9\} or texts as of --fix, got 3"):
        asked("--fix", "fixes", [3])


def test_ranges_and_choices_are_checked_as_objects_too():
    assert searched("1:2:log", "here") == searched(Range(1, 2), "here") == Range(1, 2)
    assert searched(Choice(([1, 2], "a")), "here") == Choice(((1, 2), "a"))
    for wrong, words in (
        (Range(2, 1), "here: the range must go from a smaller to a larger number"),
        (Range(0, 1), "here: a logarithmic range must begin above 0, got 0"),
        (Choice((object, 1)), "here: <class 'object'> cannot be kept; a value is a number"),
    ):
        with pytest.raises(BadInput, match=words):
            searched(wrong, "here")
    assert plain([1, (None, "a", True)], "here") == (1, (None, "a", True))
