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
    is not counted. Of tensors that wrap others, as quantized and sharded ones do, the inner ones count.

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
        self._ignored = {address for t in ignore for address in _storages(t)}
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
        return any(self._users[address] > 0 for address in _storages(tensor))

    def _pack(self, tensor: Tensor) -> _Held | Tensor:
        storages = {a: n for a, n in _storages(tensor).items() if n > 0 and a not in self._ignored}
        if not storages:
            return tensor
        for address, nbytes in storages.items():
            if self._users[address] == 0:
                self.current += nbytes
            self._users[address] += 1
        self.peak = max(self.peak, self.current)
        return _Held(self, tensor.detach(), storages)  # an operation that holds its own output would never be freed

    @staticmethod
    def _unpack(held: _Held | Tensor) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    def _release(self, storages: dict[int, int]) -> None:
        for address, nbytes in storages.items():
            self._users[address] -= 1
            if self._users[address] == 0:
                self.current -= nbytes


class _Held:
    """A saved tensor; tells its meter when autograd lets go of it."""

    def __init__(self, meter: ActivationMeter, tensor: Tensor, storages: dict[int, int]) -> None:
        self.meter, self.tensor, self.storages = meter, tensor, storages

    def __del__(self) -> None:
        self.meter._release(self.storages)


def _storages(tensor: Tensor) -> dict[int, int]:
    """Addresses and bytes of the memory of a tensor; of one that wraps others, as its class says, that of these."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {address: n for name in names for address, n in _storages(getattr(tensor, name)).items()}
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}
