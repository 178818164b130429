"""Run the benchmarks: python -m benchmarks [training] [evaluation] [coding] [data] [workflow] [--out FILE]

All parts run in one process after the other; without --out and with all parts the results go to
benchmarks/results/{machine}.json.
"""

import argparse
import datetime
import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import hardware, tables
from benchmarks.hardware import Machine
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results"
NEEDS = {"data": ("tiktoken",), "workflow": ("snakemake",)}
"""Packages of a part beyond those of training, evaluation and coding."""


def training(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import training

    return training.run(machine, training.GPU if machine.is_gpu else training.CPU, sections=sections_of(given))


def evaluation(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import evaluation

    return evaluation.run(machine, evaluation.GPU if machine.is_gpu else evaluation.CPU, sections=sections_of(given))


def coding(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import coding

    return coding.run()


def data(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import data

    return data.run(machine, given.tokens)


def workflow(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import workflow

    return workflow.run()


PARTS: dict[str, Callable[[Machine, argparse.Namespace], dict[str, Any]]] = {
    part.__name__: part for part in (training, evaluation, coding, data, workflow)
}


def main(arguments: list[str] | None = None) -> None:
    given = _parse(arguments)
    missing = [f"{part}: package {name}" for part in given.parts for name in NEEDS.get(part, ()) if not _is_there(name)]
    if missing:
        raise UserError(f"missing here: {', '.join(missing)}; install them or name the parts to run")
    if "data" in given.parts:
        from benchmarks.data import load_vocabulary

        load_vocabulary()
    machine = hardware.this_machine(given.threads, use_gpu=not given.cpu)
    torch.set_num_threads(machine.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, Any] = {"machine": hardware.facts(machine)}
    peak = results["machine"]["matmul_peak_flop_per_second"] = hardware.matmul_peak(machine)
    tables.print_machine(console, results["machine"])
    results |= {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "parts": {}}
    for part in given.parts:
        started = time.monotonic()
        measured = PARTS[part](machine, given)
        results["parts"][part] = {"seconds_in_all": time.monotonic() - started, **measured}
        if part in ("training", "evaluation"):
            add_shares([measured] if part == "training" else measured["strides"].values(), machine, peak)
        tables.print_part(console, part, results)
        gc.collect()
        if machine.is_gpu:
            torch.cuda.empty_cache()
    path = given.out or (RESULTS / f"{machine.name}.json" if set(given.parts) == set(PARTS) else None)
    if path is not None:
        write_json(path, _kept(path) | results)
        console.print(f"written to {path}")


def _kept(path: Path) -> dict[str, Any]:
    """Return what `make gpu` measured on the same machine."""
    before = read_json(path, missing="", fix="move it away") if path.exists() else {}
    return {"gpu": before["gpu"]} if "gpu" in before else {}


def add_shares(rows: Iterable[dict[str, Any]], machine: Machine, peak: dict[str, float]) -> None:
    """Put `share_of_matmul_peak` beside every FLOP/s.

    The peak is measured again, so that a busy moment before does not pass for the machine's best.
    """
    peak |= {name: max(peak[name], rate) for name, rate in hardware.matmul_peak(machine).items()}
    for row in rows:
        for name in {"product", "reference", "all"} & set(row):
            dtype = row["reference" if name == "reference" else "product"]["dtype"]
            row[name]["share_of_matmul_peak"] = row[name]["flop_per_second"] / peak[dtype]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[2])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, help="results as JSON (default with all parts: benchmarks/results/)")
    add_common_options(parser)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[2_000_000, 10_000_000], help="corpus sizes of the data part"
    )
    given = parser.parse_args(arguments)
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    given.parts = given.parts or list(PARTS)
    return given


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options about the machine and the settings."""
    parser.add_argument("--threads", type=int, help="CPU threads and tokenizing processes (default: all cores)")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU unused")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compute.compile (default: on a GPU)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute.dtype (default: what is fast here)")


def sections_of(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Changes of the settings that the command line asks for."""
    wanted = {"compile": given.compile, "dtype": given.dtype}
    return {"compute": {key: value for key, value in wanted.items() if value is not None}}


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
