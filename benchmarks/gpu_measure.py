"""What `make gpu` measures with torch, each in a process of its own.

`python -m benchmarks.gpu_measure NAME ... --out FILE` writes the file after each measurement, so that a process that is
stopped leaves what it had.
"""

import argparse
import dataclasses
import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import evaluation, hardware, training
from benchmarks.hardware import Machine
from benchmarks.training import Sections
from sublora.config import load_settings, parse_run, root_of
from sublora.runs.train import train_run
from sublora.system.digests import tensors_sha256
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.names import CHECKPOINT_NAME
from sublora.training import checkpoint

TRAINING = dataclasses.replace(training.GPU, product_steps=10, reference_steps=1, repetitions=3, variants=())
SCORING = dataclasses.replace(evaluation.GPU, documents=0, compared_documents={100: 60}, repetitions=2)
TOY_TRAINING = training.Size(
    micro_batch_sequences=2,
    micro_batches=1,
    reference_micro_batch_sequences=1,
    warmup_steps=1,
    product_steps=1,
    reference_steps=1,
    repetitions=2,
    context_length=64,
    train_documents=30,
    held_out_documents=4,
)
TOY_SCORING = dataclasses.replace(evaluation.CPU, compared_documents={32: 2}, scoring_batch_tokens=1024)
TOY_SECTIONS: Sections = {
    "model": {"kind": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 64, "init_std": 0.05},
    "data": {"tokenizer": "bytes"},
    "scoring": {"sliding_window": 10},
}
ALL_SEQUENCES_GIB = 18.0
"""GPU memory of a step of 60 sequences in bfloat16, docs/performance.md."""
SHARE_OF_MEMORY = 0.8
SMI = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory")


def device(given: argparse.Namespace) -> None:
    """Measure the machine: what it is, and how fast it multiplies matrices."""
    machine = machine_of(given)
    facts = hardware.facts(machine) | {"driver": driver_facts() if machine.is_gpu else None}
    facts |= {"compiler": compiler(), "micro_batch_sequences": micro_batch_sequences(facts)}
    write_json(given.out, facts)
    write_json(given.out, facts | {"matmul_peak_flop_per_second": hardware.matmul_peak(machine)})


def driver_facts() -> dict[str, str] | None:
    """Return what nvidia-smi says of the first GPU; None where there is no nvidia-smi, or none that works."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "--id=0"]
    try:
        outcome = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return dict(zip(SMI, (value.strip() for value in outcome.stdout.split(",")), strict=False))


def compiler() -> str | None:
    """Return the C compiler that torch.compile would use; without one the parts run uncompiled."""
    return next(filter(None, (shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "cc", "clang"))), None)


def micro_batch_sequences(facts: dict[str, Any]) -> int:
    """Return the largest divisor of a step's 60 sequences that fits into the GPU's memory."""
    sequences = TRAINING.micro_batch_sequences
    gib = facts["gpu"]["memory_mib"] / 1024 if facts["gpu"] else ALL_SEQUENCES_GIB / SHARE_OF_MEMORY
    fitting = [n for n in range(1, sequences + 1) if n / sequences * ALL_SEQUENCES_GIB <= SHARE_OF_MEMORY * gib]
    return max((n for n in fitting if sequences % n == 0), default=1)


def timing(given: argparse.Namespace) -> None:
    """Time a training step and scoring beside the plain reference, in both types, in the order of worth."""
    machine = machine_of(given)
    torch.set_num_threads(machine.threads)
    sections: Sections = dict(TOY_SECTIONS) if given.toy else {}
    sections["compute"] = {"compile": machine.is_gpu and compiler() is not None}

    def step(dtype: str) -> dict[str, Any]:
        size = TOY_TRAINING
        if not given.toy:
            rows = micro_batch_sequences(hardware.facts(machine))
            size = dataclasses.replace(
                TRAINING,
                micro_batch_sequences=rows,
                micro_batches=TRAINING.micro_batch_sequences // rows,
                reference_micro_batch_sequences=min(rows, TRAINING.reference_micro_batch_sequences),
            )
        typed = sections | {"compute": sections["compute"] | {"dtype": dtype}}
        return training.run(machine, size, sections=typed)

    def scoring(dtype: str) -> dict[str, Any]:
        size = dataclasses.replace(TOY_SCORING if given.toy else SCORING, dtype=dtype)
        (stride, row), *_ = evaluation.run(machine, size, sections=sections)["strides"].items()
        return {"stride": stride, **row}

    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "training step, bfloat16": lambda: step("bfloat16"),
        "scoring, float32": lambda: scoring("float32"),
        "training step, float32": lambda: step("float32"),
        "scoring, bfloat16": lambda: scoring("bfloat16"),
    }
    measured: dict[str, Any] = {}
    for name, measure in rows.items():
        try:
            measured[name] = measure()
        except torch.OutOfMemoryError as error:
            measured[name] = {"error": str(error).splitlines()[0]}
        write_json(given.out, {"rows": measured})
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()


def killed(given: argparse.Namespace) -> None:
    """Train as `sublora train` does, in the folder --out, and die of SIGKILL before a step."""

    def die(step: int) -> None:
        if step == given.at:
            os.kill(os.getpid(), signal.SIGKILL)

    run = parse_run(given.budget, given.allocation, given.seed)
    train_run(load_settings(given.config), run, root=root_of(given.config), out=given.out, before_step=die)


def same(given: argparse.Namespace) -> None:
    """Compare the trained numbers of two runs byte for byte."""
    paths = [folder / CHECKPOINT_NAME for folder in given.runs]
    hashes = [tensors_sha256(checkpoint.load(path)["raw_model"].items()) for path in paths]
    write_json(given.out, {"sha256": hashes, "same_bytes": len(set(hashes)) == 1})


def machine_of(given: argparse.Namespace) -> Machine:
    """Return the machine with the device that was asked for; UserError where it is not there."""
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no usable GPU here; give --device cpu, or another Python")
    return hardware.this_machine(1 if given.toy else None, use_gpu=given.device == "cuda")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_measure")
    commands = parser.add_subparsers(dest="name", required=True)
    for work in (device, timing, killed, same):
        command = commands.add_parser(work.__name__, help=work.__doc__)
        command.set_defaults(work=work)
        command.add_argument("--out", type=Path, required=True)
        if work in (device, timing):
            command.add_argument("--device", choices=["cuda", "cpu"], required=True)
            command.add_argument("--toy", action="store_true")
    commands.choices["killed"].add_argument("--config", type=Path, required=True)
    for name, kind in (("budget", str), ("allocation", str), ("seed", int), ("at", int)):
        commands.choices["killed"].add_argument(f"--{name}", type=kind, required=True)
    commands.choices["same"].add_argument("runs", type=Path, nargs=2)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
