"""Where the time of a training step or of scoring goes: python -m benchmarks.profiling training|evaluation [options]

Prints each kind of operation's share of the time in operators (CPU) or kernels (GPU), by torch.profiler, of sublora's
side of the benchmarks.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks import evaluation, hardware, training
from benchmarks.__main__ import add_common_options, sections_of
from benchmarks.hardware import Machine, synchronize
from benchmarks.synthetic import document_lengths, evenly_spread, write_random_dataset
from sublora.runs.build import build_run
from sublora.system.device import use_device

KINDS = (
    ("attention", ("attention", "flash", "fmha")),
    ("compiled, fused", ("triton", "fused_", "cpp_")),
    ("matrix products", ("::mm", "addmm", "bmm", "gemm", "nvjet", "cutlass", "xmma", "dot")),
    ("elementwise", ("elementwise", "aten::add", "aten::mul", "aten::sub", "dropout", "bernoulli")),
    ("softmax and loss", ("softmax", "logsumexp", "gather", "scatter", "exp", "::ge", "::sum", "max", "log")),
    ("layer norm", ("layer_norm", "LayerNorm")),
    ("activation", ("gelu", "Sigmoid", "sigmoid", "tanh")),
    ("copies", ("copy", "Memcpy", "Memset", "::cat", "fill", "zero")),
)
"""(kind, what its operations' names contain), the first that fits."""
SHOWN_OPERATIONS = 12


def training_work(machine: Machine, sections: training.Sections, folder: Path) -> Callable[[], Any]:
    """A step of training."""
    size = training.GPU if machine.is_gpu else training.CPU
    settings = training.settings_for(
        machine,
        sections=sections,
        held_out_documents=size.held_out_documents,
        tokens_per_step=size.micro_batch_sequences * size.micro_batches * size.context_length,
        micro_batch_sequences=size.micro_batch_sequences,
    )
    lengths = document_lengths(size.train_documents + 2 * size.held_out_documents)
    dataset = write_random_dataset(folder, settings.data, lengths)
    trainer = training.trainer_of(settings, training.RUN, dataset, machine, folder)
    numbers = iter(range(settings.training.steps))
    return lambda: trainer._step(next(numbers))


def evaluation_work(machine: Machine, sections: training.Sections, folder: Path) -> Callable[[], Any]:
    """Scoring the documents of the comparison at the smallest stride."""
    size = evaluation.GPU if machine.is_gpu else evaluation.CPU
    stride, count = min(size.compared_documents.items())
    settings = evaluation.settings_at(machine, size, sections)
    settings = evaluation.with_stride(settings, stride)
    use_device(settings.compute, machine.device)
    dataset = write_random_dataset(folder, settings.data, document_lengths(200 + 2 * size.held_out_documents))
    product = evaluation.Product(build_run(settings, training.RUN, dataset, folder, machine.device))
    documents = evenly_spread([dataset.document("train", i) for i in range(dataset.n_documents)], count)
    return lambda: product.losses(settings, documents)


def shares(machine: Machine, work: Callable[[], Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds by kind and by operation, of one call after one that warms up."""
    work()
    activities = [ProfilerActivity.CUDA] if machine.is_gpu else [ProfilerActivity.CPU]
    synchronize(machine)
    with profile(activities=activities) as profiler:
        work()
        synchronize(machine)
    kinds, operations = Counter(), Counter()
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if machine.is_gpu else event.self_cpu_time_total
        operations[event.key] += microseconds / 1e3
        kinds[kind_of(event.key)] += microseconds / 1e3
    return dict(kinds.most_common()), dict(operations.most_common(SHOWN_OPERATIONS))


def kind_of(operation: str) -> str:
    return next((kind for kind, parts in KINDS if any(part in operation for part in parts)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__.splitlines()[2])
    parser.add_argument("part", choices=["training", "evaluation"])
    add_common_options(parser)
    given = parser.parse_args()
    machine = hardware.this_machine(given.threads, use_gpu=not given.cpu)
    torch.set_num_threads(machine.threads)
    make_work = training_work if given.part == "training" else evaluation_work
    with tempfile.TemporaryDirectory() as folder:
        kinds, operations = shares(machine, make_work(machine, sections_of(given), Path(folder)))
    total = sum(kinds.values())
    for title, rows in (("kind", kinds), ("operation", operations)):
        table = Table(title, "ms", "share")
        for name, milliseconds in rows.items():
            table.add_row(name, f"{milliseconds:,.1f}", f"{milliseconds / total:.1%}")
        Console().print(table)


if __name__ == "__main__":
    main()
