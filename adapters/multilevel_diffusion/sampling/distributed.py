"""One job on several processes, by torch.distributed: who is who, and the few words that they exchange.

The processes are those of one process group: none (one process alone), the group of the caller, or the one that
:func:`process_group` joins when the command was started by `torchrun`. They exchange only shard numbers and checksums;
images go to the folder of the job (see :mod:`multilevel_diffusion.sampling.job`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

__all__ = ["gather", "place", "process_group"]

T = TypeVar("T")

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


@contextmanager
def process_group(device: torch.device | str = "cpu", *, timeout: float = 1800.0) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and leave them at the end; does nothing in a process alone.

    Arguments:
        device: Where the networks run. A "cuda" without a number is the GPU number LOCAL_RANK of the machine; the group
            then has NCCL beside gloo.
        timeout: Seconds to wait for the other processes before giving up. The last one to be done may be behind by as
            much as it takes to compute one shard: give more than that.

    Yields:
        The device of this process.

    Raises:
        ValueError: A timeout that is not positive; more processes than GPUs on this machine.
        ConnectionError: The other processes do not answer.

    Example:
        >>> with process_group("cpu") as device:
        ...     print(device, place())
        cpu (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f'"timeout" must be a positive number of seconds, got {timeout}')
    device = torch.device(device)
    if distributed.is_initialized() or not all(name in os.environ for name in _TORCHRUN):
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f'"device" is "cuda", but this is process {device.index + 1} of a machine with '
                f"{torch.cuda.device_count()} of them; start as many processes, or take the device cpu"
            )
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, distributed.DistError) as error:
        raise _silent(error) from error
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """Return the rank of this process and how many there are: (0, 1) for a process alone."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def gather(value: T) -> list[T]:
    """Return the values of all processes, by rank, in every process; waits until all have called it.

    Raises:
        ConnectionError: A process has died, or has not come within the timeout of the group.

    Example:
        >>> gather("alone")
        ['alone']
    """
    if not distributed.is_initialized():
        return [value]
    values = [value] * distributed.get_world_size()
    try:
        distributed.all_gather_object(values, value)
    except (RuntimeError, distributed.DistError) as error:
        raise _silent(error) from error
    return values


def _silent(error: Exception) -> ConnectionError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConnectionError(
        f"another process of this job has died or did not answer in time ({first}); finished shards are kept, start "
        "the same command again"
    )
