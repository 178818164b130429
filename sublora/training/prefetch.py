"""Batches assembled ahead of time, so that a GPU waits neither for their assembly nor for their copy."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

Assemble = Callable[[int], tuple[np.ndarray, ...]]
"""The batch of a step, which depends on the step alone."""


class Prefetcher:
    """The batch of each step on the device; on a GPU a thread already assembles the next one in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._ahead: dict[tuple[Assemble, int], Future[list[Tensor]]] = {}

    def batch(self, assemble: Assemble, step: int) -> list[Tensor]:
        """The tensors of `assemble(step)`; another `assemble` than before drops what was assembled ahead."""
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
