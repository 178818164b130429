"""Choosing a device, and sharing the GPUs of a machine between jobs."""

import contextlib
import getpass
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from sublora import config
from sublora.errors import UserError

POLL_SECONDS = 1.0


@contextlib.contextmanager
def claim_device(compute: config.Compute) -> Iterator[torch.device]:
    """Yield the CPU, or a GPU that no other job of this user on this machine holds; wait for one if need be.

    Each GPU has a lock file, released when the process ends, however it ends. Sets the thread count.
    UserError if a GPU is asked for and there is none.
    """
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu":
        yield torch.device("cpu")
        return
    if not torch.cuda.is_available():
        raise UserError(
            "compute.device is cuda but this machine has no usable GPU; run on a machine with one "
            "(snakemake --profile profiles/slurm), or the demo (snakemake --profile profiles/demo)"
        )
    lock, index = _claim_gpu()
    try:
        torch.cuda.set_device(index)
        yield torch.device("cuda", index)
    finally:
        lock.release()


def _claim_gpu() -> tuple[FileLock, int]:
    folder = Path(tempfile.gettempdir()) / f"sublora-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    while True:
        for index in range(torch.cuda.device_count()):
            name = getattr(torch.cuda.get_device_properties(index), "uuid", index)
            lock = FileLock(folder / f"{name}.lock", blocking=False)
            with contextlib.suppress(Timeout):
                lock.acquire()
                return lock, index
        time.sleep(POLL_SECONDS)


def gpu_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
