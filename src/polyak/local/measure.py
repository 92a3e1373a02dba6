"""How many bytes autograd holds for the backward pass, at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class ActivationMeter:
    """Bytes of the tensors that are saved for backward and alive at the same time.

    A context manager on :func:`torch.autograd.graph.saved_tensors_hooks`: it works on every device, counts each storage
    once however many operations save it, and sees it go when backward frees it. Temporary memory inside an operation
    is not counted.

    Example::

        with ActivationMeter(ignore=model.parameters()) as meter:
            loss_of(model(x)).backward()
        print(meter.peak)

    Args:
        ignore: tensors that are there anyway, as parameters and buffers.

    Attributes:
        current: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self.current = 0
        self.peak = 0
        self._ignored = {_address(t) for t in ignore}
        self._users: Counter[int] = Counter()
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> ActivationMeter:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is saved for backward now."""
        return self._users[_address(tensor)] > 0

    def _pack(self, tensor: Tensor) -> _Held | Tensor:
        address = _address(tensor)
        if address in self._ignored or tensor.untyped_storage().nbytes() == 0:
            return tensor
        if self._users[address] == 0:
            self.current += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self.current)
        self._users[address] += 1
        return _Held(self, tensor.detach())  # an operation that holds its own output would never be freed

    @staticmethod
    def _unpack(held: _Held | Tensor) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    def _release(self, tensor: Tensor) -> None:
        address = _address(tensor)
        self._users[address] -= 1
        if self._users[address] == 0:
            self.current -= tensor.untyped_storage().nbytes()


class _Held:
    """A saved tensor; tells its meter when autograd lets go of it."""

    def __init__(self, meter: ActivationMeter, tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor

    def __del__(self) -> None:
        self.meter._release(self.tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
