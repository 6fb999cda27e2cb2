"""Several processes as one: what they must add up, and how they share images out.

Without a process group (one process, no ``torchrun``) every function here is the identity. Where there is one, every
process must call ``global_sum``, ``global_mean`` and ``gathered`` as often and in the same order as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if _is_distributed() else 1


def global_sum(values: Tensor) -> Tensor:
    """Add a tensor up over all processes.

    Args:
        values: This process's share, any shape and dtype, the same on all processes, on any device.

    Returns:
        The sum, on the device of ``values`` and without gradient; ``values`` is left as it is.
    """
    if not _is_distributed():
        return values.detach()
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else values.device
    total = values.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def global_mean(values: Tensor) -> Tensor:
    """Return the mean of a float tensor over all processes, without gradient: a loss as one process would log it.

    One value that is not finite makes the mean not finite on every process, so all of them come to the same decision.
    """
    return global_sum(values) / world_size()


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this process's items, so that each item is some process's and no item is two processes'.

    Nothing is padded: shares differ by one item where the number does not divide, and are empty where there are fewer
    items than processes. So work on a share must not wait for the others, image by image.
    """
    return items[rank() :: world_size()]


def gathered(own: Sequence[T]) -> list[T]:
    """Return what the processes made of their shares, in the order of the items that ``shard`` was given.

    Args:
        own: One result for each item of this process's share; results must pickle.
    """
    if not _is_distributed():
        return list(own)
    shares: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, list(own))
    return [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
