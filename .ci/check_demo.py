"""The demo's files are all there and say something: python .ci/check_demo.py demo

The second form checks runs on a random base instead: python .ci/check_demo.py --random-base demo/random_base
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd
import torch

from sublora.config import load_settings

FINITE = ("kl_divergence", "empirical_bpd", "bound_value", "compressed_size_bits")
FIGURES = ("pareto_d{}", "compression_d{}", "bound_decomposition_d{}", "gating_heatmap_d{}")
FIGURES_OF_ALL = ("allocation_grid", "gating_trend")


def check_run(folder: Path) -> float:
    """The run's bound in bits per token; stops if a value is missing, not finite, or the bound is vacuous."""
    torch.load(folder / "best_ckpt.pt", weights_only=True)
    record = json.loads((folder / "bounds.json").read_text())
    metrics = torch.load(folder / "bounds_metrics.pt", weights_only=True)
    for key in FINITE:
        assert math.isfinite(record[key]), f"{folder.name}: {key} is {record[key]}"
        assert metrics[key] == record[key], f"{folder.name}: {key} is {metrics[key]} in bounds_metrics.pt"
    assert record["bound_value"] < record["vacuous_bits"], f"{folder.name}: the bound is vacuous"
    return record["bound_value"]


def check_against_yardsticks(runs: pd.DataFrame, rows: dict[str, dict[str, float]]) -> None:
    """The networks' certificates are smaller than every trivial model's, and adapting was worth its bits."""
    for name in ("unigram", "bigram", "order3"):
        assert runs["bound_all_runs"].max() < rows[name]["bound_bits"], f"{name}: {rows[name]['bound_bits']}"
    frozen = rows["frozen_base"]["bound_bits"]
    assert runs["bound_all_runs"].max() < frozen, f"frozen base: {frozen}"
    assert (runs["anchor_base_bound"] == frozen).all(), "the bound on the base's loss is the row of the frozen base"
    best = runs.loc[runs["bound_value"].idxmin()]
    # What the anchored bound of this experiment reaches, with room for other processors' rounding.
    for key, limit in (
        ("bound_value", 2.90),
        ("bound_all_runs", 2.94),
        ("by_source_bound", 3.20),
        ("by_source_bound_all_runs", 3.25),
    ):
        assert runs[key].min() <= limit, f"smallest {key} {runs[key].min()}, expected at most {limit}"
    gain = best["certified_gain_all_runs_bits"]
    assert gain >= 0.28, f"certified gain of {best['name']} {gain}"
    assert best["bound_value"] <= best["bound_held_out"] + 0.06, f"held out: {best['bound_held_out']}"
    assert (runs["bound_value"] < runs["bound_direct"]).all()
    print(
        f"best bound {best['bound_value']:.3f} (direct {best['bound_direct']:.3f}, held out "
        f"{best['bound_held_out']:.3f}), frozen base {frozen:.3f}, order 3 {rows['order3']['bound_bits']:.3f} bits per "
        f"token; certified gain, choice paid: {gain:.3f}"
    )


def print_seconds(logs: Path) -> None:
    """Where the time went: jobs and seconds a rule, from the benchmark files."""
    seconds: dict[str, list[float]] = {}
    for path in sorted(logs.rglob("*.benchmark.tsv")):
        rule = path.relative_to(logs).parts[0].removesuffix(".benchmark.tsv")
        seconds.setdefault(rule, []).append(float(pd.read_csv(path, sep="\t")["s"].iloc[0]))
    for rule, values in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        print(f"{rule:24} {len(values):3} jobs {sum(values):8.1f} s")


def main(root: Path) -> None:
    settings = load_settings(root / "config/config.yaml")
    results = root / "results"
    bounds = [check_run(results / "runs" / run.name) for run in settings.grid.runs()]
    assert len(bounds) == 30, len(bounds)
    names = [name.format(budget) for name in FIGURES for budget in settings.grid.budgets]
    for name in [*names, *FIGURES_OF_ALL]:
        for suffix in (".png", ".pdf"):
            assert (results / "figures" / f"{name}{suffix}").stat().st_size > 1000, name + suffix
    runs = pd.read_csv(results / "runs.csv")
    assert len(runs) == 30
    check_against_yardsticks(runs, json.loads((root / "results/yardsticks.json").read_text())["rows"])
    assert len(pd.read_csv(results / "tables/yardsticks.csv")) >= 6
    assert len(pd.read_csv(results / "tables/summary.csv")) == 10
    assert (results / "tables/summary.tex").read_text().count(r"\\") >= 10
    assert len(pd.read_csv(results / "tables/hypotheses.csv")) > 0
    images = len(names) + len(FIGURES_OF_ALL)
    assert (results / "report.html").read_text().count("<img ") >= images
    print(f"30 runs, bounds from {min(bounds):.3f} to {max(bounds):.3f} bits per token, all below log2 V")
    print_seconds(root / "logs")


def main_random_base(root: Path) -> None:
    bounds = [check_run(folder) for folder in sorted((root / "results/runs").iterdir())]
    assert bounds and min(bounds) <= 5.05, bounds
    print(f"{len(bounds)} runs on a random base, best bound {min(bounds):.3f} bits per token")


if __name__ == "__main__":
    if sys.argv[1] == "--random-base":
        main_random_base(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
