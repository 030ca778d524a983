"""Numbers that the host reads from the device without waiting for it."""

from __future__ import annotations

from collections import deque

import torch

_LAG = 2


class LaggingCount:
    """A device count as it was two calls ago: by then the copy has arrived and nothing waits.

    Which value is seen does not depend on timing, so runs repeat. On a CPU, and at the first call,
    the present value is taken.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._seen: int | None = None

    def update(self, count: torch.Tensor) -> int:
        """Hand in the present count (an integer scalar) and get the one that the host may know."""
        if not count.is_cuda:
            return int(count)
        if self._seen is None:
            self._seen = int(count)
        on_host = torch.empty((), dtype=count.dtype, pin_memory=True)
        on_host.copy_(count, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((on_host, arrived))
        if len(self._pending) > _LAG:
            on_host, arrived = self._pending.popleft()
            arrived.synchronize()
            self._seen = int(on_host)
        return self._seen
