"""Tensors to Flower's records and back. What was received is compared with what is expected before it is read."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from torch import Tensor, nn

from polyak.federated.rules.messages import fault_of
from polyak.federated.rules.tensors import Tensors

RULE = "polyak"
"""Key of the ConfigRecord that goes with a rule's tensors, in both directions, and of what a node keeps."""
SCALARS = "polyak-scalars"
"""Key of the ConfigRecord with a rule's numbers."""
STYPE = "numpy.ndarray"
HEADER = 1024
"""Bytes that the header of an array may have; numpy's own are of 128 up to some thirty dimensions."""
SHOWN = 200
RUN = re.compile("[0-9A-Za-z]{1,64}")


class Unusable(ValueError):
    """A record that cannot be used; says why."""


@dataclass(frozen=True)
class Layout:
    """Which entries of a module's ``state_dict`` are trained, which are buffers, and which stay.

    Args:
        like: all entries of the state dict.
        trained: the weights that require a gradient, each once.
        buffers: the buffers.
        tied: other names of weights that have several, with the one in use.
    """

    like: Tensors
    trained: list[str]
    buffers: list[str]
    tied: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """That of a module.

        Raises:
            ValueError: an entry that is not a tensor, or nothing to train.
        """
        like = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
        if odd := sorted(set(model.state_dict()) - set(like)):
            raise ValueError(f"Strategy: model must have tensors alone in its state_dict, got others as {odd}")
        first = {id(p): n for n, p in model.named_parameters()}
        names = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise ValueError("Strategy: model must have weights that require a gradient, got none")
        buffers = [n for n, _ in model.named_buffers() if n in like]
        tied = {n: name for n, name in names.items() if n != name}
        return cls({n: t.detach().cpu() for n, t in like.items()}, trained, buffers, tied)

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """A state dict as trained weights, buffers, and the rest."""
        arrays = {n: tensors[n] for n in self.trained}
        buffers = {n: tensors[n] for n in self.buffers}
        rest = {n: t for n, t in tensors.items() if n not in arrays and n not in buffers and n not in self.tied}
        return arrays, buffers, rest

    def joined(self, *parts: Mapping[str, Tensor]) -> Tensors:
        """Parts as a state dict again, in its order."""
        together = {n: t for part in parts for n, t in part.items()}
        return {n: together[self.tied.get(n, n)] for n in self.like}


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as a record.

    Raises:
        TypeError: a dtype that NumPy, and so Flower, has not.
    """
    record = ArrayRecord()
    for name, tensor in tensors.items():
        try:
            record[name] = Array.from_numpy_ndarray(tensor.detach().cpu().numpy())
        except TypeError as error:
            raise TypeError(
                f"Flower's records hold what NumPy has: {name!r} must be of such a dtype, got {tensor.dtype}"
            ) from error
    return record


def from_record(record: object, like: Mapping[str, Tensor], finite: bool = True) -> Tensors:
    """A record as named tensors on the CPU, in the order of ``like``.

    Nothing is unpickled, and nothing is allocated that is larger than ``like``.

    Args:
        record: what was received.
        like: tensors of the names, shapes and dtypes that it must have.
        finite: whether all values must be finite.

    Raises:
        Unusable: it is anything else.
    """
    if not isinstance(record, ArrayRecord):
        raise Unusable(f"is {type(record).__name__}, not an ArrayRecord")
    if set(record) != set(like):
        raise Unusable(short(f"has the names {sorted(record)}, not {sorted(like)}"))
    found = {name: _tensor(name, record[name], want) for name, want in like.items()}
    if fault := fault_of(found, like, finite):
        raise Unusable(fault)
    return found


def named(name: str, record: object, like: Tensors, finite: bool = False) -> Tensors:
    """:func:`from_record`, whose errors begin with the record's name; a rule looks for values that are not finite."""
    try:
        return from_record(record, like, finite)
    except Unusable as error:
        raise Unusable(f"{short(name)} {error}") from error


def integer(record: ConfigRecord, key: str) -> int:
    """A whole number of a record."""
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Unusable(short(f"has {value!r} as {key!r}, not a whole number"))
    return value


def run_of(order: ConfigRecord) -> str:
    """The name of a server's run, which becomes a part of names of files and records."""
    value = order.get("run")
    if not isinstance(value, str) or not RUN.fullmatch(value):
        raise Unusable(short(f"has {value!r} as 'run', not 1 to 64 letters and digits"))
    return value


def short(text: str) -> str:
    """A text cut to a line of its begin and its end, so that what was received cannot fill a log."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


def _tensor(name: str, array: Array, want: Tensor) -> Tensor:
    dtype = torch.empty(0, dtype=want.dtype).numpy().dtype
    size = want.numel() * dtype.itemsize
    if array.stype != STYPE:
        raise Unusable(short(f"has {name!r} serialized as {array.stype!r}, not {STYPE!r}"))
    if len(array.data) > size + HEADER:
        raise Unusable(f"has {name!r} of {len(array.data)} bytes, more than {size}")
    file = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, got = np.lib.format.read_array_header_1_0(file, max_header_size=HEADER)
    except Exception as error:  # whatever bytes make a parser of Python literals raise
        raise Unusable(short(f"has {name!r} with a header that cannot be read: {error}")) from error
    if version != (1, 0):
        raise Unusable(f"has {name!r} in version {version} of NumPy's format, not (1, 0)")
    if shape != tuple(want.shape) or got != dtype:
        raise Unusable(short(f"has {name!r} as {shape} {got}, not {tuple(want.shape)} {dtype}"))
    if len(array.data) != file.tell() + size:
        raise Unusable(f"has {name!r} with {len(array.data) - file.tell()} bytes of values, not {size}")
    values = np.frombuffer(array.data, dtype, offset=file.tell())
    return torch.from_numpy(np.array(values.reshape(shape, order="F" if fortran else "C"), order="C"))
