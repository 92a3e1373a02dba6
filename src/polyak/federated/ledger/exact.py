"""Numbers and texts whose bytes are the same on every machine, and their hashes.

A float has no place in a hash chain: what is written are decimal texts of at most 18 places, what is computed are
fractions rounded to those places.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

PLACES = 18
"""Decimal places of a number that is not whole."""
LARGEST = 10**36
"""No number reaches it."""
DECIMAL = re.compile(r"0|-?(?:[1-9][0-9]*|(?:0|[1-9][0-9]*)\.[0-9]*[1-9])")
DIGEST = re.compile(r"[0-9a-f]{64}")

Number = int | float | Fraction | Decimal


def exact(value: Number, name: str = "value") -> Fraction:
    """A number as a fraction; a float as the decimal that it is printed as, so that 0.1 is one tenth.

    Raises:
        TypeError: no number.
        ValueError: one that is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction, Decimal)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return Fraction(repr(float(value))) if isinstance(value, float) else Fraction(value)


def fixed(value: Fraction) -> Fraction:
    """Rounded to 18 decimal places, halves to even."""
    return Fraction(round(value * 10**PLACES), 10**PLACES)


def decimal_text(value: Number, name: str = "value") -> str:
    """The one decimal text of a number, rounded to 18 places: no exponent, no zero behind the last digit.

    Raises:
        TypeError: no number.
        ValueError: one that is not finite, or 1e36 or more.
    """
    units = round(exact(value, name) * 10**PLACES)
    if abs(units) >= LARGEST * 10**PLACES:
        raise ValueError(f"{name} must be below 1e36 in size, got {value!r}")
    whole, places = divmod(abs(units), 10**PLACES)
    digits = f"{whole}.{places:0{PLACES}d}".rstrip("0").rstrip(".")
    return f"-{digits}" if units < 0 else digits


def from_text(text: Any, name: str = "value") -> Fraction:
    """The number that :func:`decimal_text` wrote.

    Raises:
        ValueError: any other text, or no text: floats among them.
    """
    if not isinstance(text, str) or len(text) > 60 or not DECIMAL.fullmatch(text):
        raise ValueError(f"{name} must be a decimal text such as '0.25' or '-3', got {text!r}")
    value = Fraction(text)
    if decimal_text(value, name) != text:
        raise ValueError(f"{name} must have at most {PLACES} decimal places, got {text!r}")
    return value


def canonical(data: Any) -> str:
    """JSON in one way only: keys in the order of their code points, no spaces, ASCII.

    Raises:
        TypeError: a float in it, or what is no JSON.
    """
    _refuse_floats(data)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _refuse_floats(data: Any) -> None:
    if isinstance(data, float):
        raise TypeError(f"a ledger holds no floats, write a decimal text: got {data!r}")
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                raise TypeError(f"names in a ledger must be texts, got {key!r}")
            _refuse_floats(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            _refuse_floats(value)


def sha256(*texts: str) -> str:
    """SHA-256 of texts one behind the other, 64 hexadecimal digits."""
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def digest(value: Any, name: str) -> str:
    """A hash as it was given; refuses what is none.

    Raises:
        ValueError: anything but 64 hexadecimal digits in small letters.
    """
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 64 hexadecimal digits, got {value!r}")
    return value


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names in sorted order, each with dtype, shape and its bytes, the lowest first.

    The same on every device and machine, and different for another name, dtype, shape or bit.

    Raises:
        TypeError: a tensor that is not dense, or complex.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise TypeError(f"hash_tensors: {name!r} must be a dense real tensor, got {tensor.dtype}, {tensor.layout}")
        if callable(gather := getattr(tensor, "full_tensor", None)):  # shards of a DTensor
            tensor = gather()
        values = tensor.cpu().contiguous().reshape(-1)
        total.update(f"{canonical([name, str(tensor.dtype), list(tensor.shape)])}\n".encode())
        raw = values.view(torch.uint8).reshape(-1, values.itemsize)
        total.update((raw if sys.byteorder == "little" else raw.flip(1)).numpy().tobytes())
    return total.hexdigest()


def commitment(update: str, salt: str) -> str:
    """What an agent posts before it shows the hash of its update: SHA-256 of both, so that nobody can copy it.

    In that round: what was shown is known, and a later reveal of it by another agent is refused.

    Args:
        update: of :func:`hash_tensors`.
        salt: 64 hexadecimal digits that nobody can guess: ``secrets.token_hex(32)``.

    Raises:
        ValueError: one that is no such text.
    """
    return sha256(digest(update, "update"), digest(salt, "salt"))
