"""Choose a device, and share the GPUs of a machine between jobs. Importing this module does not import torch."""

import contextlib
import getpass
import os
import random
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sublora.system.errors import UserError
from sublora.system.locks import ProcessLock

if TYPE_CHECKING:
    import numpy as np
    import torch

POLL_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 7 * 86400.0
"""For the GPUs of a machine to get free."""


class ComputeSettings(Protocol):
    """What this module needs to know of the settings' section `compute`."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""

    @property
    def threads(self) -> int:
        """Threads of PyTorch on the CPU."""

    @property
    def deterministic(self) -> bool:
        """Whether a GPU uses only operations that give the same bits every time."""


def gpu_is_present() -> bool:
    """Return whether a process started here would see an NVIDIA GPU, without the seconds that importing torch takes.

    A GPU hidden by CUDA_VISIBLE_DEVICES does not count.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    command = shutil.which("nvidia-smi")
    if command:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
        return listing.returncode == 0 and "GPU " in listing.stdout
    return any(Path("/dev").glob("nvidia[0-9]*"))


def free_memory_bytes() -> int:
    """Return how much memory this process can still take: that of the machine, or of its own limit (ulimit -v)."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit != resource.RLIM_INFINITY and statm.exists():
        free = min(free, limit - page * int(statm.read_text().split()[0]))
    return max(0, free)


@contextlib.contextmanager
def claim_device(compute: ComputeSettings) -> Iterator["torch.device"]:
    """Claim one device for a process that works alone, make it this process's own, and yield it."""
    with claim_devices(compute, 1) as (device,):
        use_device(compute, device)
        yield device


def use_device(compute: ComputeSettings, device: "torch.device") -> None:
    """Make a claimed device this process's own, and set the thread count and, on a GPU, the deterministic mode.

    Products in float32 are never computed in a GPU's TF32, whose mantissa has 10 bits.
    """
    import torch

    torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        if compute.deterministic:
            # cuBLAS reads this variable on its first use. Operations without a deterministic form only warn: the only
            # one used here, a scatter with one element per row, gives the same bits anyway.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.cuda.set_device(device)


@contextlib.contextmanager
def claim_devices(compute: ComputeSettings, count: int) -> Iterator[list["torch.device"]]:
    """Yield the CPU `count` times, or `count` GPUs that no other job of this user on this machine holds.

    Waits until they are free. Each GPU has a lock file, which is released when the process ends, however it ends.

    Raises:
        UserError: a GPU is asked for and the machine has no usable one, or fewer than `count`.
    """
    import torch

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


def _claim_gpus(count: int) -> dict[int, ProcessLock]:
    """Lock `count` GPUs or none: two jobs that each hold a part of what the other needs would wait forever.

    UserError if they do not get free within LONGEST_WAIT_SECONDS.
    """
    import torch

    folder = Path(tempfile.gettempdir()) / f"sublora-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    while True:
        held: dict[int, ProcessLock] = {}
        for index in range(torch.cuda.device_count()):
            name = getattr(torch.cuda.get_device_properties(index), "uuid", index)
            lock = ProcessLock(folder / f"{name}.lock")
            if lock.acquire():
                held[index] = lock
            if len(held) == count:
                return held
        # Too few are free: give back what was locked, and try again at a moment that differs between jobs.
        for lock in held.values():
            lock.release()
        if time.monotonic() - started > LONGEST_WAIT_SECONDS:
            raise UserError(
                f"{folder}: other processes have held the GPUs of this machine for "
                f"{LONGEST_WAIT_SECONDS / 86400:g} days; end those that hang (nvidia-smi shows them) and start again"
            )
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


def to_device(array: "np.ndarray", device: "torch.device") -> "torch.Tensor":
    """Return the array on the device; to a GPU through pinned memory, so that the host does not wait for the copy."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gpu_name(device: "torch.device") -> str | None:
    """Return the product name of a GPU, None for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_memory_mib(device: "torch.device") -> float:
    """Return the largest memory used so far, in MiB: that of the GPU's allocator, or of this process on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
