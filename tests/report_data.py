"""A results folder as the rule of the report finds it, its figures blank but of true size."""

import re
from collections.abc import Mapping
from pathlib import Path

from analysis_data import YARDSTICKS, write_results, write_yardsticks_of
from conftest import REPOSITORY
from PIL import Image

from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.report.page import write_report
from sublora.analysis.runs_table import collect_runs, read_runs_csv, write_runs_csv
from sublora.analysis.tables import write_table_csv
from sublora.config import Grid

OF_A_BUDGET = (
    ("pareto", 990),
    ("compression", 2070),
    ("bound_decomposition", 990),
    ("bound_by_inequality", 990),
    ("loss_curves", 2070),
    ("gating_heatmap", 990),
    ("gating_traces", 2070),
)
"""Kinds of figures and their widths in pixels: one column or two at 300 dpi."""
OF_ALL = (("allocation_grid", 2070), ("bound_against_budget", 2070), ("gating_trend", 990))


def captions() -> list[Path]:
    """The caption files in the order that the workflow gives them."""
    rules = (REPOSITORY / "workflow/rules/figures.smk").read_text()
    figures = re.findall(r'Figure\("(\w+)", .*, (?:ALLOCATIONS|GATES)\),', rules)
    names = ["workflow", "yardsticks", "summary", "hypotheses", *figures]
    return [REPOSITORY / "workflow/report" / f"{name}.rst" for name in names]


def write_inputs(
    folder: Path,
    grid: Grid,
    *,
    layers: int = 4,
    all_scored: bool = False,
    anchored: bool = False,
    yardsticks: Mapping[str, tuple[float, float]] = YARDSTICKS,
) -> dict[str, object]:
    """Tables and figures of made-up runs; returns the arguments of `write_report` beside the path."""
    folders = write_results(folder / "runs", grid, layers=layers, all_scored=all_scored, anchored=anchored)
    write_runs_csv(collect_runs(folders), folder / "runs.csv")
    write_table_csv(hypothesis_table(read_runs_csv(folder / "runs.csv")), folder / "hypotheses.csv")
    sizes = dict(OF_ALL) | {f"{kind}_d{budget}": width for kind, width in OF_A_BUDGET for budget in grid.budgets}
    figures = []
    (folder / "figures").mkdir()
    for rank, (name, width) in enumerate(sizes.items()):
        figures.append(folder / "figures" / f"{name}.png")
        Image.new("L", (width, 600 + rank), 200).save(figures[-1])
    return {
        "runs_csv": folder / "runs.csv",
        "yardsticks_json": write_yardsticks_of(folder, yardsticks),
        "losses": [each / "losses.npz" for each in folders],
        "hypotheses_csv": folder / "hypotheses.csv",
        "figures": figures,
        "captions": captions(),
    }


def write_page(folder: Path, grid: Grid, *, layers: int = 4) -> Path:
    path = folder / "report.html"
    write_report(path, **write_inputs(folder, grid, layers=layers))
    return path
