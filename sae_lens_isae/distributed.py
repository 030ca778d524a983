"""What the ranks of a data-parallel run agree on, by `torch.distributed`.

Every rank trains on a share of each batch. What is no mean over samples, and what chooses at
random, goes through these functions; in a process that is alone each returns what it was given.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float

Value = TypeVar("Value")


def n_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if n_ranks() > 1 else 0


def joined(batch: Float[torch.Tensor, "batch ..."]) -> Float[torch.Tensor, "all_batches ..."]:
    """The samples of all ranks, in the order of the ranks; no gradient."""
    if n_ranks() == 1:
        return batch
    batch = batch.detach().contiguous()
    parts = [torch.empty_like(batch) for _ in range(n_ranks())]
    dist.all_gather(parts, batch)
    return torch.cat(parts)


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks; no gradient."""
    if n_ranks() == 1:
        return tensor
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def averaged(tensor: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks; no gradient."""
    return summed(tensor) / n_ranks() if n_ranks() > 1 else tensor


def of_first_rank(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of rank 0: for what every rank computed, and must not differ by rounding."""
    if n_ranks() == 1:
        return tensor
    # all ranks must hold the same bits, and booleans are not broadcast everywhere
    shared = tensor.detach().clone().to(torch.uint8 if tensor.dtype == torch.bool else tensor.dtype)
    dist.broadcast(shared, 0)
    return shared.to(tensor.dtype)


def agreed(value: Value) -> Value:
    """The value that rank 0 has, which can be anything that pickles."""
    if n_ranks() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def wait_for_all() -> None:
    """Until every rank is here."""
    if n_ranks() > 1:
        dist.barrier()
