"""How time and memory grow with documents and with runs, each size in a process of its own.

    python -m benchmarks.growth [PART=SIZE,SIZE,...] ...

    prepare          documents of about 450 bytes, tokenized as bytes: CPU, memory, largest temporary files
    yardsticks       the same documents, prepared: trivial models, all of them scored
    near_duplicates  documents that share more than half of their text with all others
    bound            every inequality on that many losses
    hypotheses, figures, report   tables of that many runs, made up: 5 allocations x 2 budgets, the rest seeds
    plan             snakemake -n of that many runs

Prints one line per part: CPU seconds and peak memory by size, less those of a tiny size, which are mostly imports, and
the exponent of CPU over size between the last two sizes. Without arguments, all parts at the sizes of SIZES.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = {
    "prepare": (50_000, 200_000),
    "yardsticks": (5_000, 20_000),
    "near_duplicates": (1_000, 2_000, 4_000),
    "bound": (10_000, 100_000, 1_000_000),
    "hypotheses": (30, 300, 3_000),
    "figures": (30, 300, 3_000),
    "report": (30, 300, 3_000),
    "plan": (30, 300, 3_000),
}
TINY = {"prepare": 1_000, "yardsticks": 1_000, "near_duplicates": 10, "bound": 100}
"""Sizes that show what a process takes in any case; of runs, 10."""
TEMPLATE_BYTES, OWN_BYTES = 900, 700
"""Lengths of what a document shares with all others and of the rest: too little alike for near duplicates (0.38)."""
ALLOCATIONS = ("uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned")
BUDGETS = (1000, 2000)


# What is measured: functions of a folder and a size, each in a process that calls it once. `set_up_...` comes before,
# in another process.


def set_up_prepare(folder: Path, documents: int) -> None:
    """Write a .jsonl file of texts, and settings that prepare it."""
    import numpy as np

    from benchmarks.synthetic import settings_with
    from sublora.config import write_resolved

    (folder / "corpus").mkdir()
    words = [f"w{number:x}" for number in range(4096)]
    random = np.random.default_rng(0)
    with open(folder / "corpus" / "text.jsonl", "w", encoding="utf-8") as lines:
        for count in random.integers(40, 160, size=documents):
            lines.write(json.dumps({"text": " ".join(words[i] for i in random.integers(0, 4096, size=count))}) + "\n")
    data = {
        "name": "grown",
        "corpus": {"kind": "folder", "path": "corpus", "text_field": "text", "unit_field": None},
        "tokenizer": "bytes",
        "min_characters": 1,
        "min_tokens": 1,
        "val_documents": 200,
        "test_documents": 200,
        "workers": 1,
    }
    scoring = {"documents": "all", "val_documents": 200, "test_documents": 200}
    settings = settings_with({"data": data, "scoring": scoring})
    write_resolved(settings, folder / "config" / "config.yaml")


def prepare(folder: Path, documents: int) -> None:
    from sublora import config
    from sublora.data.prepare import prepare_dataset

    path = folder / "config" / "config.yaml"
    prepare_dataset(config.load_settings(path).data, folder)


def set_up_yardsticks(folder: Path, documents: int) -> None:
    set_up_prepare(folder, documents)
    prepare(folder, documents)


def yardsticks(folder: Path, documents: int) -> None:
    from sublora import config
    from sublora.data.dataset import TokenDataset
    from sublora.losses.bounded import bounded_loss
    from sublora.yardsticks import compute_yardsticks

    settings = config.load_settings(folder / "config" / "config.yaml")
    dataset = TokenDataset.open(folder, settings.data)
    loss = bounded_loss(
        settings, vocab_size=dataset.vocab_size, n_units=dataset.n_units, n_documents=dataset.n_documents
    )
    compute_yardsticks(dataset, loss, val_documents=200, test_documents=200)


class TemplateTexts:
    """Stands for a dataset of documents that share the beginning of their text; each is read as bytes."""

    def __init__(self, documents: int) -> None:
        import numpy as np

        self._count = documents
        self._template = np.random.default_rng(0).integers(0, 256, TEMPLATE_BYTES).astype(np.uint8).tobytes()

    def document_lengths(self, split: str) -> range:
        return range(self._count)

    def load_tokenizer(self) -> "TemplateTexts":
        return self

    def document(self, split: str, i: int) -> bytes:
        import numpy as np

        return self._template + np.random.default_rng(i + 1).integers(0, 256, OWN_BYTES).astype(np.uint8).tobytes()

    def decode(self, text: bytes) -> "Bytes":
        return Bytes(text)


class Bytes(bytes):
    """A text that is encoded already."""

    def encode(self) -> bytes:
        return self


def near_duplicates(folder: Path, documents: int) -> None:
    from sublora.data.near_duplicates import ClusterRule, cluster

    found = cluster(TemplateTexts(documents), ClusterRule())  # type: ignore[arg-type]
    assert found.documents == documents


def bound(folder: Path, losses: int) -> None:
    import numpy as np

    from sublora import certify

    values = np.random.default_rng(0).beta(2.0, 5.0, size=losses)
    certify(values, lower=0.0, upper=1.0, code_bits=1000.0, n=losses)


def set_up_runs(folder: Path, runs: int) -> None:
    """Write runs.csv and what figures and the report read: ten runs, and the same with other seeds and bounds."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import numpy as np
    import pandas as pd
    from analysis_data import write_results, write_yardsticks_of

    from sublora.analysis.runs_table import collect_runs, write_runs_csv
    from sublora.config import Grid

    grid = Grid(budgets=BUDGETS, allocations=ALLOCATIONS, seeds=(0,))
    first = collect_runs(write_results(folder / "runs", grid, steps=60))
    random, tables = np.random.default_rng(0), [first]
    for seed in range(1, runs // len(first)):
        larger = first["bound_value"] + 0.05 * random.random(len(first))
        gates = {
            name: first[name] + 0.01 * random.normal(size=len(first)) for name in first if name.startswith("gamma_")
        }
        names = [name.replace("seed0", f"seed{seed}") for name in first["name"]]
        tables.append(first.assign(name=names, seed=seed, bound_value=larger, **gates))
    table = pd.concat(tables).assign(sweep_size=runs).sort_values(["budget", "mode", "ratio", "seed"], kind="stable")
    write_runs_csv(table, folder / "runs.csv")
    write_yardsticks_of(folder)


def hypotheses(folder: Path, runs: int) -> None:
    from sublora.analysis.hypotheses import hypothesis_table
    from sublora.analysis.runs_table import read_runs_csv
    from sublora.analysis.tables import write_table_csv

    write_table_csv(hypothesis_table(read_runs_csv(folder / "runs.csv")), folder / "hypotheses.csv")


def figures(folder: Path, runs: int) -> None:
    """Draw figures that read nothing but the runs table and the yardsticks."""
    from sublora.analysis.figures import allocation, bounds, tradeoff, training
    from sublora.analysis.figures.style import save_figure
    from sublora.analysis.runs_table import read_runs_csv
    from sublora.analysis.yardsticks import load_yardsticks

    table = read_runs_csv(folder / "runs.csv")
    trivial = load_yardsticks(folder / "yardsticks.json", table)
    drawn = {
        "pareto": tradeoff.pareto(table, BUDGETS[0], trivial),
        "bound_decomposition": allocation.bound_decomposition(table, BUDGETS[0], trivial),
        "bound_by_inequality": bounds.bound_by_inequality(table),
        "compression": tradeoff.compression(table, BUDGETS[0]),
        "gating_heatmap": training.gating_heatmap(table, BUDGETS[0]),
    }
    for name, figure in drawn.items():
        save_figure(figure, png=folder / f"{name}.png", pdf=folder / f"{name}.pdf")


def set_up_report(folder: Path, runs: int) -> None:
    set_up_runs(folder, runs)
    hypotheses(folder, runs)


def report(folder: Path, runs: int) -> None:
    """Write the page without its figures, which are copied as they are."""
    from sublora.analysis.report.page import write_report

    captions = [REPOSITORY / "workflow/report" / f"{name}.rst" for name in CAPTIONS]
    write_report(
        folder / "report.html",
        runs_csv=folder / "runs.csv",
        yardsticks_json=folder / "yardsticks.json",
        losses=sorted(folder.glob("runs/*/losses.npz")),
        hypotheses_csv=folder / "hypotheses.csv",
        figures=[],
        captions=captions,
    )


CAPTIONS = ("workflow", "yardsticks", "summary", "hypotheses")


def set_up_plan(folder: Path, runs: int) -> None:
    """Write the workflow with a grid of that many runs; its jobs would do nothing."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from workflow.toy import Toy

    seeds = list(range(runs // (len(ALLOCATIONS) * len(BUDGETS))))
    toy = Toy.build(folder / "toy")
    toy.write_settings(grid={"budgets": list(BUDGETS), "allocations": list(ALLOCATIONS), "seeds": seeds})


def plan(folder: Path, runs: int) -> None:
    os.chdir(folder / "toy")
    os.environ["PATH"] = f"{folder / 'toy' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    from snakemake.cli import main

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    main(["--dry-run", "--quiet"])


WORK: dict[str, tuple[Callable[[Path, int], None] | None, Callable[[Path, int], None]]] = {
    "prepare": (set_up_prepare, prepare),
    "yardsticks": (set_up_yardsticks, yardsticks),
    "near_duplicates": (None, near_duplicates),
    "bound": (None, bound),
    "hypotheses": (set_up_runs, hypotheses),
    "figures": (set_up_runs, figures),
    "report": (set_up_report, report),
    "plan": (set_up_plan, plan),
}
"""What comes before, and what is measured."""


def measured(part: str, size: int) -> dict[str, float]:
    """Return CPU seconds, those of worker processes included, peak memory, and the largest temporary files."""
    set_up, work = WORK[part]
    with tempfile.TemporaryDirectory() as folder:
        if set_up is not None:
            _call(set_up, Path(folder), size)
        with LargestFolder(Path(folder) / "data") as files:
            process = _started(work, Path(folder), size)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{part} of {size}: failed")
    return {
        "size": size,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_mib": usage.ru_maxrss / 1024,
        "temporary_mib": files.largest / 2**20,
    }


def _call(function: Callable[[Path, int], None], folder: Path, size: int) -> None:
    if _started(function, folder, size).wait():
        raise SystemExit(f"{function.__name__} of {size}: failed")


def _started(function: Callable[[Path, int], None], folder: Path, size: int) -> subprocess.Popen[bytes]:
    code = "import pathlib, sys; from benchmarks import growth; name, folder, size = sys.argv[1:]; "
    code += "getattr(growth, name)(pathlib.Path(folder), int(size))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", code, function.__name__, str(folder), str(size)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


class LargestFolder:
    """Watches how large the temporary files below a folder get."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.largest = 0

    def __enter__(self) -> "LargestFolder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            sizes = []
            for path in self._folder.glob("*/.prepare/*"):
                try:
                    sizes.append(path.stat().st_size)
                except OSError:
                    continue  # it is gone again
            self.largest = max(self.largest, sum(sizes))


def exponent(smaller: dict[str, float], larger: dict[str, float]) -> float:
    """Return the power of the size with which CPU time grows between two sizes; nan below a tenth of a second."""
    low, high = (point["cpu_seconds_above_tiny"] for point in (smaller, larger))
    if low < 0.1 or high < 0.1:
        return math.nan
    return math.log(high / low) / math.log(larger["size"] / smaller["size"])


def main(arguments: list[str]) -> None:
    asked = dict(SIZES)
    if arguments:
        given = [argument.partition("=") for argument in arguments]
        asked = {part: tuple(map(int, sizes.split(","))) if sizes else SIZES[part] for part, _, sizes in given}
    results: dict[str, Any] = {}
    for part, sizes in asked.items():
        tiny = measured(part, TINY.get(part, 10))
        points = [measured(part, size) for size in sizes]
        for point in points:
            for key in ("cpu_seconds", "memory_mib"):
                point[f"{key}_above_tiny"] = point[key] - tiny[key]
        results[part] = [tiny, *points]
        said = "; ".join(
            f"{point['size']:,}: {point['cpu_seconds_above_tiny']:.2f} CPU s, {point['memory_mib_above_tiny']:.0f} MiB"
            + (f", {point['temporary_mib']:.0f} MiB of temporary files" if point["temporary_mib"] else "")
            for point in points
        )
        last = exponent(*points[-2:]) if len(points) > 1 else math.nan
        begun = f"{tiny['size']:,} take {tiny['cpu_seconds']:.2f} CPU s and {tiny['memory_mib']:.0f} MiB"
        print(f"{part}: {begun}; above that {said}; exponent {last:.2f}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
