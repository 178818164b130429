"""Two ways of doing the same, timed in turns."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.hardware import Machine, MemoryMeter, synchronize


def timed(machine: Machine, work: Callable[[], int]) -> dict[str, float]:
    """Units per second of one call of `work`, which returns how many it did; its peak memory above what was in use.

    Processor time is that of all threads of this process; where others use the machine too, it disturbs less.
    """
    meter = MemoryMeter(machine)
    start, cpu_start = time.perf_counter(), time.process_time()
    units = work()
    synchronize(machine)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {
        "per_second": units / seconds,
        "per_cpu_second": units / cpu_seconds,
        "seconds": seconds,
        "memory_mib": meter.peak_mib(),
    }


def compared(
    machine: Machine,
    product: Callable[[], int],
    reference: Callable[[], int],
    repetitions: int,
    warmups: dict[str, list[dict[str, float]]] | None = None,
) -> dict[str, Any]:
    """Both, in turns, `repetitions` times: medians, and the median of the ratios product / reference.

    What disturbs the machine for seconds disturbs neighbours alike, so ratios of neighbours vary less than rates.
    `warmups`: timings by side of calls made before, compilation among them; they count for the memory only.
    """
    pairs = [(timed(machine, product), timed(machine, reference)) for _ in range(repetitions)]
    result: dict[str, Any] = {}
    for name, key in (("ratio", "per_second"), ("ratio_of_cpu_time", "per_cpu_second")):
        ratios = [ours[key] / theirs[key] for ours, theirs in pairs]
        result |= {name: statistics.median(ratios), f"{name}_repetitions": ratios}
    for side, timings in zip(("product", "reference"), zip(*pairs, strict=True), strict=True):
        rates = [timing["per_second"] for timing in timings]
        before = (warmups or {}).get(side, [])
        result[side] = {
            "tokens_per_second": statistics.median(rates),
            "tokens_per_second_repetitions": rates,
            "warmup_seconds": sum(timing["seconds"] for timing in before),
            "memory_mib": max(timing["memory_mib"] for timing in (*before, *timings)),
        }
    return result


@contextlib.contextmanager
def default_algorithms() -> Iterator[None]:
    """PyTorch's default choice of algorithms, in which the reference runs whatever compute.deterministic says."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
