"""What a training exchanges: sums and decisions between its processes, and tensors between host and GPU.

Several processes work on one training if torchrun has started them. Only w and the gates are trained, so a step needs
one sum of their gradients: some kilobytes. Each process computes everything else for itself from the same seeds, or the
first one decides and tells the others. Between host and GPU neither side waits for the other.
"""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from sublora import config
from sublora.system.errors import UserError

PATIENCE = datetime.timedelta(days=7)
"""Longest wait of the others for the first, which may wait for a GPU or for another training of the same run."""


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of one training as one of them sees them; a process that is alone exchanges nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that evaluates and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` pieces of work this process does."""
        return range(self.rank, count, self.size)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace float tensors by their sums over all processes, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(message)
        parts = message.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, value: int) -> int:
        """Return the largest of the numbers that the processes pass; exchanged between CPUs, so no GPU has to wait."""
        if self.size == 1:
            return value
        message = torch.tensor(value)
        torch.distributed.all_reduce(message, torch.distributed.ReduceOp.MAX)
        return int(message)

    def from_first(self, value: Any) -> Any:
        """Return the value, any Python object, that the first process passed; every process has to call this."""
        if self.size == 1:
            return value
        message = [value]
        torch.distributed.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        return message[0]


@contextlib.contextmanager
def joined(compute: config.Compute) -> Iterator[Peers]:
    """Join the processes that torchrun started for this training: gloo between CPUs, NCCL between GPUs.

    Raises:
        UserError: their number is not compute.gpus_per_training.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != compute.gpus_per_training:
        wanted = compute.gpus_per_training
        launcher = f"torchrun --standalone --nproc-per-node={wanted} --no-python sublora train" if wanted > 1 else ""
        raise UserError(
            f"compute.gpus_per_training is {wanted}, but {size} process{'es' * (size > 1)} started; "
            f"start with: {launcher or 'sublora train (without torchrun)'}"
        )
    if size == 1:
        yield Peers()
        return
    backend = "cpu:gloo,cuda:nccl" if compute.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Peers(torch.distributed.get_rank(), size)
    finally:
        torch.distributed.destroy_process_group()


MicroBatch = tuple[np.ndarray, ...]

Assemble = Callable[[int], list[MicroBatch]]
"""Returns the micro-batches of a step, which depend on nothing but the step."""


def in_rows(batch: Callable[[int], MicroBatch], rows: int) -> Assemble:
    """Return what cuts the batch of a step, a multiple of `rows`, into micro-batches of that many rows."""

    def assemble(step: int) -> list[MicroBatch]:
        parts = batch(step)
        return [tuple(part[start : start + rows] for part in parts) for start in range(0, len(parts[0]), rows)]

    return assemble


class Prefetcher:
    """The micro-batches of each step on the device; for a GPU a thread assembles the next step's, in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._ahead: dict[tuple[Assemble, int], Future[list[list[Tensor]]]] = {}

    def micro_batches(self, assemble: Assemble, step: int) -> list[list[Tensor]]:
        """Return `assemble(step)` as tensors; another `assemble` than before discards what was assembled ahead."""
        if self._pool is None:
            return _tensors(assemble, step)
        ready = self._ahead.pop((assemble, step), None)
        self._ahead = {(assemble, step + 1): self._pool.submit(_pinned, assemble, step + 1)}
        pieces = ready.result() if ready else _pinned(assemble, step)
        return [[part.to(self._device, non_blocking=True) for part in piece] for piece in pieces]


def _tensors(assemble: Assemble, step: int) -> list[list[Tensor]]:
    return [[torch.from_numpy(part) for part in piece] for piece in assemble(step)]


def _pinned(assemble: Assemble, step: int) -> list[list[Tensor]]:
    return [[part.pin_memory() for part in piece] for piece in _tensors(assemble, step)]


class HostCopy:
    """A tensor's values on the host. The copy is queued at once, and `numpy` waits for it alone, not for later work."""

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._copied = tensor.detach(), None
        if tensor.device.type == "cuda":
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = pinned.copy_(self._values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def numpy(self) -> np.ndarray:
        """Wait for the copy and return it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.numpy()
