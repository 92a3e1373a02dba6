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
from collections.abc import Mapping
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
    """What one ``--space`` or ``--fix`` says: of which method (None: of all that have it), which argument, what."""

    option: str
    method: str | None
    argument: str
    text: str

    @property
    def where(self) -> str:
        """The option as it was typed."""
        scope = "" if self.method is None else f"{self.method}."
        return f"{self.option} {scope}{self.argument}={self.text}"


def given(option: str, text: str) -> Given:
    """Take ``method.argument=text`` or ``argument=text`` apart."""
    name, equals, said = text.partition("=")
    method, _, argument = name.strip().rpartition(".")
    if not equals or not argument.isidentifier() or not said.strip():
        example = "lr=1e-5:1e-1:log" if option == "--space" else "momentum=0.9"
        raise BadInput(f"{option} {text}: write argument=value, as {option} {example} or {option} adamw.{example}")
    return Given(option, method or None, argument, said.strip())


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
    space: dict[str, Range | Choice] = {}
    for name, entry in said.items():
        if isinstance(entry, str):
            space[name] = dimension(entry, f"{where}: space[{name!r}]")
        elif isinstance(entry, (Range, Choice)):
            space[name] = entry
        else:
            raise BadInput(f"{where}: space[{name!r}] is {entry!r}; {FORMS}, as text")
    return space


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
    log = scale == ["log"]
    if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise BadInput(f"{where}: the range must go from a smaller to a larger number")
    if log and ends[0] <= 0:
        raise BadInput(f"{where}: a logarithmic range must begin above 0, got {ends[0]:g}")
    return Range(*ends, log=log)


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
