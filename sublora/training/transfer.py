"""Data on their way between host and GPU, without either waiting for the other."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

Assemble = Callable[[int], tuple[np.ndarray, ...]]
"""Returns the batch of a step, which depends on nothing but the step."""


class Prefetcher:
    """The batch of each step on the device; for a GPU a thread assembles the next batch ahead, in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._ahead: dict[tuple[Assemble, int], Future[list[Tensor]]] = {}

    def batch(self, assemble: Assemble, step: int) -> list[Tensor]:
        """Return the tensors of `assemble(step)`; another `assemble` than before discards what was assembled ahead."""
        if self._pool is None:
            return _tensors(assemble, step)
        ready = self._ahead.pop((assemble, step), None)
        self._ahead = {(assemble, step + 1): self._pool.submit(_pinned, assemble, step + 1)}
        parts = ready.result() if ready else _pinned(assemble, step)
        return [part.to(self._device, non_blocking=True) for part in parts]


def _tensors(assemble: Assemble, step: int) -> list[Tensor]:
    return [torch.from_numpy(part) for part in assemble(step)]


def _pinned(assemble: Assemble, step: int) -> list[Tensor]:
    return [part.pin_memory() for part in _tensors(assemble, step)]


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
