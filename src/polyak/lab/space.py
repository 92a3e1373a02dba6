"""Search spaces and fixed values as a user writes them.

::

    lr=1e-5:1e-1:log                         a range, tried evenly on a logarithmic scale
    rho=0.8:0.999                            a range, tried evenly
    momentum=0.8,0.9,0.95                    choices
    betas=(0.9,0.99),(0.95,0.98)             choices that are tuples; the shell wants them quoted
    adjust_lr=original,match_rms_adamw       choices that are words
    torch.optim.AdamW.lr=1e-4:1e-2:log       for one method alone

Values are Python's; a bare word is text. What a file says (``space = {"lr": "1e-5:1e-1:log"}``) is written alike, or
with :class:`polyak.declare.Range` and :class:`polyak.declare.Choice`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polyak import optim
from polyak.declare import Choice, Range, SearchSpace
from polyak.lab.errors import BadInput

SCALES = ("log", "linear")
FORMS = "write low:high:log, low:high, or the choices with commas between them"

# Of torch's optimizers: the method of polyak whose space it shares, or a space.
_DECAY = {"weight_decay": "1e-6:1e-2:log"}
TORCH: dict[str, str | dict[str, str]] = {
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adamw",
    "Adadelta": {"lr": "1e-2:10:log", "rho": "0.9,0.95,0.99", **_DECAY},
    "Adafactor": {"lr": "1e-4:1e-1:log", "weight_decay": "1e-4:1e-1:log"},
    "Adagrad": {"lr": "1e-3:1:log", **_DECAY},
    "Adamax": {"lr": "1e-4:1e-1:log", **_DECAY},
    "ASGD": {"lr": "1e-3:1:log", **_DECAY},
    "NAdam": {"lr": "1e-4:3e-2:log", **_DECAY},
    "RAdam": {"lr": "1e-4:3e-2:log", **_DECAY},
    "RMSprop": {"lr": "1e-5:1e-2:log", "momentum": "0.0,0.9", **_DECAY},
    "Rprop": {"lr": "1e-4:1e-1:log"},
}


@dataclass(frozen=True)
class Given:
    """What is said of an argument: of which method (None: of all that have it), what, and where, for messages."""

    method: str | None
    argument: str
    said: Any
    where: str


def asked(option: str, name: str, said: object) -> list[Given]:
    """What a user says of arguments: texts as of an option, one or several, or a dict.

    Args:
        option: ``--space`` or ``--fix``, which texts are those of.
        name: of the argument in Python.
        said: the texts or the dict.
    """
    if isinstance(said, Mapping):
        return [_named(name, key, value) for key, value in said.items()]
    found = []
    for text in said if isinstance(said, Iterable) and not isinstance(said, str) else [said]:
        if not isinstance(text, str):
            example = "{'lr': '1e-5:1e-1:log'}" if option == "--space" else "{'momentum': 0.9}"
            raise BadInput(f"{name} must be a dict like {example} or texts as of {option}, got {text!r}")
        found.append(given(option, text))
    return found


def _named(name: str, key: object, said: Any) -> Given:
    method, _, argument = key.rpartition(".") if isinstance(key, str) else ("", "", "")
    if not argument.isidentifier():
        raise BadInput(f"{name}: {key!r} is no argument; write 'lr', or 'adamw.lr' for one method alone")
    return Given(method or None, argument, said, f"{name}[{key!r}]")


def given(option: str, text: str) -> Given:
    """Take ``method.argument=text`` or ``argument=text`` apart."""
    name, equals, said = text.partition("=")
    method, _, argument = name.strip().rpartition(".")
    if not equals or not argument.isidentifier() or not said.strip():
        example = "lr=1e-5:1e-1:log" if option == "--space" else "momentum=0.9"
        raise BadInput(f"{option} {text}: write argument=value, as {option} {example} or {option} adamw.{example}")
    said = said.strip()
    return Given(method or None, argument, said, f"{option} {f'{method}.' if method else ''}{argument}={said}")


def searched(said: object, where: str) -> Range | Choice:
    """A range or choices, as text or as objects."""
    if isinstance(said, str):
        return dimension(said, where)
    if isinstance(said, Range):
        return _sound(said, where)
    if not isinstance(said, Choice):
        raise BadInput(f"{where} is {said!r}; {FORMS}, as text, or a polyak.declare.Range or Choice")
    return Choice(tuple(plain(each, where) for each in said.values))


def plain(said: Any, where: str) -> Any:
    """A value that a store can keep."""
    if isinstance(said, (tuple, list)):
        return tuple(plain(each, where) for each in said)
    if said is None or isinstance(said, (bool, int, float, str)):
        return said
    raise BadInput(f"{where}: {said!r} cannot be kept; a value is a number, a text, a bool, None or a tuple of these")


def dimension(text: str, where: str) -> Range | Choice:
    """Read a range or choices."""
    if ":" in text:
        return _range(text, where)
    values = _values(text, where)
    if len(values) < 2:
        raise BadInput(f"{where}: one value leaves nothing to search; {FORMS}, or fix it: --fix")
    return Choice(values)


def value(text: str, where: str) -> Any:
    """Read one value."""
    values = _values(text, where)
    if len(values) != 1:
        raise BadInput(f"{where}: fix one value, a tuple in brackets; got {len(values)}")
    return values[0]


def declared(said: object, where: str) -> SearchSpace:
    """The space that a file gives: a mapping from arguments to text, :class:`Range` or :class:`Choice`."""
    if not isinstance(said, Mapping):
        raise BadInput(f"{where}: space must be a dict like {{'lr': '1e-5:1e-1:log'}}, got {type(said).__name__}")
    return {name: searched(entry, f"{where}: space[{name!r}]") for name, entry in said.items()}


def torch_space(factory: Any) -> SearchSpace | None:
    """The space of one of torch's own optimizers; ``None`` for anything else."""
    name = getattr(factory, "__name__", "")
    known = TORCH.get(name) if f"{getattr(factory, '__module__', '')}.".startswith("torch.optim.") else None
    if known is None:
        return None
    return optim.get(known).search_space if isinstance(known, str) else declared(known, f"torch.optim.{name}")


def corners(space: SearchSpace) -> list[dict[str, Any]]:
    """Settings that between them hold both ends of every range and every choice."""
    sizes = {name: 2 if isinstance(d, Range) else len(d.values) for name, d in space.items()}
    return [{n: _nth(d, i % sizes[n]) for n, d in space.items()} for i in range(max(sizes.values(), default=0))]


def _nth(one: Range | Choice, i: int) -> Any:
    return (one.low, one.high)[i] if isinstance(one, Range) else one.values[i]


def _range(text: str, where: str) -> Range:
    low, high, *scale = (part.strip() for part in text.split(":"))
    try:
        ends = float(low), float(high)
    except ValueError:
        raise BadInput(f"{where}: {low}:{high} are not two numbers; {FORMS}") from None
    if len(scale) > 1 or (scale and scale[0] not in SCALES):
        raise BadInput(f"{where}: the scale must be one of {list(SCALES)}, got {':'.join(scale)!r}")
    return _sound(Range(*ends, log=scale == ["log"]), where)


def _sound(found: Range, where: str) -> Range:
    """A range that can be searched."""
    if not all(map(math.isfinite, (found.low, found.high))) or found.low >= found.high:
        raise BadInput(f"{where}: the range must go from a smaller to a larger number")
    if found.log and found.low <= 0:
        raise BadInput(f"{where}: a logarithmic range must begin above 0, got {found.low:g}")
    return found


def _values(text: str, where: str) -> tuple[Any, ...]:
    try:
        tree = ast.parse(f"({text.strip()},)", mode="eval").body
        assert isinstance(tree, ast.Tuple)
        return tuple(_value(node) for node in tree.elts)
    except (SyntaxError, ValueError, AssertionError):
        raise BadInput(f"{where}: {text!r} cannot be read as values; {FORMS}") from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(entry) for entry in node.elts)
    return ast.literal_eval(node)
