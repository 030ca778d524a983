"""Numbers that the host learns from the device without waiting for it."""

from __future__ import annotations

from collections import deque

import torch

_LAG = 2


class LaggingCopies:
    """Copies of small device tensors, handed out some calls later, when they have arrived.

    What is handed out when depends on the number of calls alone, not on timing, so runs repeat.
    Tensors on a CPU are handed out at once.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def __reduce__(self) -> tuple[type[LaggingCopies], tuple[()]]:
        # what is under way on the device belongs to the original
        return LaggingCopies, ()

    def push(self, tag: int, tensor: torch.Tensor) -> None:
        """Start a copy; it comes back with its tag."""
        if not tensor.is_cuda:
            self._pending.append((tag, tensor.detach().clone(), None))
            return
        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        on_host.copy_(tensor.detach(), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((tag, on_host, arrived))

    def pop(self, wait: bool = False) -> list[tuple[int, torch.Tensor]]:
        """What was pushed at least two pushes ago; everything, where `wait` is set."""
        found: list[tuple[int, torch.Tensor]] = []
        while self._pending:
            tag, tensor, arrived = self._pending[0]
            if arrived is not None:
                if not wait and len(self._pending) <= _LAG:
                    break
                # two steps later this does not wait, unless the host is that far ahead
                arrived.synchronize()
            found.append((tag, tensor))
            self._pending.popleft()
        return found
