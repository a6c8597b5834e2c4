"""Memory that sweeps over maps hand on to one another."""

import torch
from torch import Tensor

MOST_HANDED_ON = 2
"""So many pieces of memory wait for the next sweep."""

LARGEST_HANDED_ON = 64 << 20
"""Larger pieces go back to the system, in bytes."""

ALIGNMENT = 64
"""Every room begins at a multiple of so many bytes."""

_waiting: list[Tensor] = []


class Workspace:
    """One piece of memory, out of which rooms are given by name.

    On a CPU it is handed on to the next workspace that fits into it when this one is closed: memory that is new to
    the process is paid for page by page, and on some machines that takes longer than what is done with it. On a GPU
    PyTorch's own allocator does the same.

    Args:
        n_bytes: Of all rooms together.
        device: Where.
    """

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        self._memory: Tensor | None = _take(n_bytes, device)
        self._rooms: dict[object, Tensor] = {}
        self._used = 0

    def room(self, name: object, n_numbers: int, dtype: torch.dtype) -> Tensor:
        """The room of this name, made when it is first asked for; what it holds is left as it is."""
        if name not in self._rooms:
            assert self._memory is not None, "the workspace is closed"
            n_bytes = n_numbers * dtype.itemsize
            self._rooms[name] = self._memory[self._used : self._used + n_bytes].view(dtype)
            self._used += rounded(n_bytes)
        return self._rooms[name]

    def close(self) -> None:
        """Hand the memory on; its rooms are then no longer to be used."""
        if self._memory is not None and self._memory.device.type == "cpu":
            _give(self._memory)
        self._memory = None
        self._rooms.clear()


def rounded(n_bytes: int) -> int:
    """What a room of so many bytes takes."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _take(n_bytes: int, device: torch.device) -> Tensor:
    if device.type == "cpu":
        for index, memory in enumerate(_waiting):
            if memory.numel() >= n_bytes:
                return _waiting.pop(index)
    return torch.empty(n_bytes, dtype=torch.uint8, device=device)


def _give(memory: Tensor) -> None:
    if memory.numel() <= LARGEST_HANDED_ON:
        _waiting.append(memory)
        _waiting.sort(key=Tensor.numel)
        del _waiting[:-MOST_HANDED_ON]
