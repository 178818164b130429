"""Choosing a device, and sharing the GPUs of a machine between jobs."""

import contextlib
import getpass
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from sublora import config
from sublora.system.errors import UserError

POLL_SECONDS = 1.0


@contextlib.contextmanager
def claim_device(compute: config.Compute) -> Iterator[torch.device]:
    """`claim_devices` for a process alone: yield one device and use it."""
    with claim_devices(compute, 1) as (device,):
        use_device(compute, device)
        yield device


def use_device(compute: config.Compute, device: torch.device) -> None:
    """Make a claimed device this process's own, and set the thread count and, on a GPU, the deterministic mode.

    Products in float32 are never done in a GPU's TF32, which keeps 10 bits.
    """
    torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        if compute.deterministic:
            # cuBLAS reads this when it is first used. Operations without a deterministic form only warn: the one of
            # ours, a scatter with one element a row, does not vary.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.cuda.set_device(device)


@contextlib.contextmanager
def claim_devices(compute: config.Compute, count: int) -> Iterator[list[torch.device]]:
    """Yield the CPU (`count` times), or so many GPUs that no other job of this user on this machine holds.

    Waits for them if need be. Each GPU has a lock file, released when the process ends, however it ends.
    UserError if a GPU is asked for and there is none, or fewer than `count`.
    """
    if compute.device == "cpu":
        yield [torch.device("cpu")] * count
        return
    if not torch.cuda.is_available():
        raise UserError(
            f"compute.device is cuda but this machine ({socket.gethostname()}) has no usable GPU; run on one that has "
            "(snakemake --profile profiles/slurm), or the demo (snakemake --profile profiles/demo)"
        )
    if count > torch.cuda.device_count():
        raise UserError(
            f"compute.gpus_per_training is {count}, but this machine ({socket.gethostname()}) shows "
            f"{torch.cuda.device_count()} GPUs; "
            "ask for as many, or lower it"
        )
    locks = _claim_gpus(count)
    try:
        yield [torch.device("cuda", index) for index in locks]
    finally:
        for lock in locks.values():
            lock.release()


def _claim_gpus(count: int) -> dict[int, FileLock]:
    """All of them or none: two jobs that each hold a part of what the other needs would wait for ever."""
    folder = Path(tempfile.gettempdir()) / f"sublora-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    while True:
        held: dict[int, FileLock] = {}
        for index in range(torch.cuda.device_count()):
            name = getattr(torch.cuda.get_device_properties(index), "uuid", index)
            lock = FileLock(folder / f"{name}.lock", blocking=False)
            with contextlib.suppress(Timeout):
                lock.acquire()
                held[index] = lock
            if len(held) == count:
                return held
        for lock in held.values():
            lock.release()
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device; to a GPU through pinned memory, so that the host does not wait for what is queued."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gpu_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
