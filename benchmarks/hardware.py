"""The machine under measurement: what it is, how fast it multiplies matrices, how much memory a piece of work takes."""

import ctypes
import dataclasses
import gc
import multiprocessing
import os
import platform
import re
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "numpy", "tiktoken", "constriction", "snakemake")
MATMUL_REPETITIONS = 15
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""CPU features, x86 and ARM, that multiply bfloat16 matrices natively."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a benchmark runs."""

    device: torch.device
    threads: int

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> str:
        """What the product computes in: bfloat16 where the hardware multiplies it."""
        return "bfloat16" if self.is_gpu or BFLOAT16_FLAGS & set(_cpu_info("flags", "Features").split()) else "float32"

    @property
    def name(self) -> str:
        """The name of its results file: the GPU, or the CPU and how many threads are used."""
        title = torch.cuda.get_device_name(self.device) if self.is_gpu else f"{cpu_model()} {self.threads} threads"
        return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def this_machine(threads: int | None = None, *, use_gpu: bool = True) -> Machine:
    """The GPU if there is one, else the CPU with this number of threads; default: one for each core of this process."""
    device = torch.device("cuda", 0) if use_gpu and torch.cuda.is_available() else torch.device("cpu")
    return Machine(device, threads or len(os.sched_getaffinity(0)))


def cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(*keys: str) -> str:
    """The first value in /proc/cpuinfo under one of the keys, '' where neither is there."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")


def facts(machine: Machine) -> dict[str, Any]:
    """Hardware, versions and load, as JSON values."""
    gpu: dict[str, Any] = {}
    if machine.is_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        gpu = {"name": properties.name, "memory_mib": properties.total_memory / 2**20, "cuda": torch.version.cuda}
    return {
        "name": machine.name,
        "gpu": gpu or None,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": machine.threads,
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20,
        "load_average_at_start": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def matmul_peak(machine: Machine) -> dict[str, float]:
    """FLOP/s of a large square matrix product, by dtype: the best of some repetitions.

    float32 as PyTorch computes it by default, without TensorFloat-32. In a process of its own, because what
    sublora.system.device sets for a deterministic run must come before the first use of the GPU.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_matmul_peak, machine).result()


def _matmul_peak(machine: Machine) -> dict[str, float]:
    torch.set_num_threads(machine.threads)
    size, peak = 8192 if machine.is_gpu else 2048, {}
    for name in ("float32", "bfloat16"):
        # A CPU without native bfloat16 is too slow at it for large matrices.
        side = size if machine.is_gpu or name in ("float32", machine.dtype) else size // 4
        left, right = (
            torch.randn(side, side, device=machine.device).mul_(0.1).to(getattr(torch, name)) for _ in range(2)
        )
        seconds = []
        for _ in range(MATMUL_REPETITIONS):
            count = 20 if machine.is_gpu else 1
            synchronize(machine)
            start = time.perf_counter()
            for _ in range(count):
                left @ right
            synchronize(machine)
            seconds.append((time.perf_counter() - start) / count)
        peak[name] = 2 * side**3 / min(seconds)
    return peak


def synchronize(machine: Machine) -> None:
    if machine.is_gpu:
        torch.cuda.synchronize(machine.device)


class MemoryMeter:
    """Largest memory in use since `start`, above what was in use then: of the GPU's allocator, or of this process."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.start()

    def start(self) -> None:
        synchronize(self._machine)
        if self._machine.is_gpu:
            torch.cuda.reset_peak_memory_stats(self._machine.device)
            self._before = torch.cuda.memory_allocated(self._machine.device)
        else:
            gc.collect()
            libc = ctypes.CDLL(None)
            if hasattr(libc, "malloc_trim"):  # glibc keeps what was freed, and the work would take it from there unseen
                libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is forgotten
            self._before = memory_status("VmRSS")

    def peak_mib(self) -> float:
        on_gpu = self._machine.is_gpu
        peak = torch.cuda.max_memory_allocated(self._machine.device) if on_gpu else memory_status("VmHWM")
        return (peak - self._before) / 2**20


def memory_status(key: str) -> int:
    """Bytes of this process: VmRSS (now) or VmHWM (the peak)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
