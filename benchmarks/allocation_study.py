"""The tables and the figures of the allocation study, from the results of `make study`.

    python -m benchmarks.allocation_study study docs/studies/allocation
    python -m benchmarks.allocation_study docs/studies/allocation

The first reads results/runs/ of each cell in the folder study and writes into the second folder: runs.csv (all runs, a
column for the cell), hypotheses_<start>.csv of the two main cells, regime.csv (differences of every cell), and the
figures. The second draws the figures again from these tables: allocation_grid_<start>, gating_trend_<start> and regime,
.png and .pdf. Cells that are not there, or not finished, are named and left out.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from sublora.analysis.arms import LEARNED, UNIFORM
from sublora.analysis.figures import allocation, style, training
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.hypotheses.inference import holm, sign_flip_p
from sublora.analysis.hypotheses.rows import HEADLINE
from sublora.analysis.report.facts import QUESTIONS, answer
from sublora.analysis.runs_table import collect_runs
from sublora.analysis.tables import write_table_csv
from sublora.system.errors import UserError

STARTS = ("zero_b", "both_random")
RANKS = {"rank2": 2, "rank4": 4, "rank8": 8, "rank16": 16}
TARGETS = {
    "without_head": "no head",
    "with_mlp": "with MLP",
    "with_mlp_without_head": "with MLP,\nno head",
}
BASE = {"random_base": "random base"}
OTHERS = TARGETS | BASE
FRESH = tuple(f"fresh_{cell}" for cell in RANKS)
"""Cells again, on seeds that nothing was found on: they alone are tested."""
STILL = "fresh_rank16_still"
"""Gates that are not trained: learned minus this is what moving them gains."""
CELLS = (*STARTS, *RANKS, *OTHERS, *FRESH, STILL)
PARTS = {"regime": RANKS, "targets": TARGETS, "base": BASE, "fresh": FRESH}
"""Cells whose differences are taken to have one spread."""
FRESH_TESTS = 7
"""Cells that the plan tests on fresh seeds, for each contrast; one that is not there counts with p = 1."""
GATES_MOVED = "learned - gates at 1/2"
UNSTABLE = "unstable"
"""A part of its own: at d = 8000 some trainings diverge, and their spread says nothing of the other cells."""
UNSTABLE_BUDGET = 8000
BEST_FIXED, LEARNED_GAIN = "best fixed - uniform", "learned - uniform"
DRAWN = {BEST_FIXED: "best fixed split", LEARNED_GAIN: "learned gates"}
"""Contrasts of the figure."""
CONTRASTS = (*DRAWN, "learned - best fixed")
KEPT = (
    *("name", "budget", "allocation", "mode", "ratio", "seed", "bound_value", "bound_hoeffding", "bound_all_runs"),
    *("empirical_bpd", "kl_divergence", "compressed_size_bits", "code_bits", "smoothing"),
    *("val_loss_bits", "test_loss_bits", "vacuous_bits", "n_units", "m_units", "data_hash"),
)
RUNS_NAME, REGIME_NAME = "runs.csv", "regime.csv"
KEPT_PREFIXES = ("gamma_", "bits_", "version_", "seconds_")
RANK_COLOURS = ("#9ecae1", "#4292c6", "#2171b5", "#08306b")


@dataclasses.dataclass(frozen=True)
class Differences:
    """One contrast in one cell at one budget: a value for each seed, bits per token."""

    cell: str
    budget: int
    contrast: str
    values: tuple[float, ...]
    chosen: tuple[str, ...] = ()
    """The fixed split that was compared for each seed."""


def read_cells(folder: Path) -> dict[str, pd.DataFrame]:
    """The runs of each cell that is complete."""
    found = {}
    for cell in CELLS:
        try:
            runs = collect_runs(sorted((folder / cell / "results" / "runs").glob("*")))
        except UserError as error:
            print(f"{cell}: left out: {error}", file=sys.stderr)
            continue
        if len(runs) != runs["sweep_size"].iloc[0]:
            print(f"{cell}: left out: {len(runs)} of {runs['sweep_size'].iloc[0]} runs", file=sys.stderr)
            continue
        found[cell] = runs
    return found


def contrasts(cell: str, runs: pd.DataFrame) -> list[Differences]:
    """The three contrasts at each budget of a cell.

    The best fixed split is chosen by its mean over the other seeds, so that choosing it is not rewarded on the seed
    that it is compared on.
    """
    found = []
    for budget, rows in runs.groupby("budget"):
        table = rows.pivot(index="seed", columns="allocation", values=HEADLINE)
        fixed = table[[name for name in table.columns if name.startswith("fixed-")]]
        chosen = [str(fixed.drop(index=seed).mean().idxmin()) for seed in table.index]
        best = np.array([fixed.loc[seed, name] for seed, name in zip(table.index, chosen, strict=True)])
        uniform, learned = table[UNIFORM].to_numpy(), table[LEARNED].to_numpy()
        for contrast, values in zip(CONTRASTS, (best - uniform, learned - uniform, learned - best), strict=True):
            names = tuple(chosen) if "best" in contrast else ()
            found.append(Differences(cell, int(budget), contrast, tuple(values.tolist()), names))
    return found


def against_still(cells: dict[str, pd.DataFrame]) -> list[Differences]:
    """learned minus the same with gates that stay at 1/2, at each budget of the control."""
    if STILL not in cells or "fresh_rank16" not in cells:
        return []
    keys = ["budget", "seed"]
    learned, still = (
        runs[runs["mode"] == LEARNED].set_index(keys)[HEADLINE] for runs in (cells["fresh_rank16"], cells[STILL])
    )
    found = []
    for budget, values in (learned - still).dropna().groupby(level="budget"):
        found.append(Differences("fresh_rank16", int(budget), GATES_MOVED, tuple(values.tolist())))
    return found


def with_intervals(found: Sequence[Differences]) -> pd.DataFrame:
    """regime.csv: means with 95 % t intervals, for one contrast and part with one standard deviation, pooled.

    p_less, of fresh cells: one-sided sign flips of "not below zero"; p_holm: over the cells.
    """
    rows = []
    for part in (*PARTS, UNSTABLE):
        for contrast in (*CONTRASTS, GATES_MOVED):
            own = [each for each in found if part_of(each) == part and each.contrast == contrast]
            if own:
                rows += _pooled(part, own)
    table = pd.DataFrame(rows)
    fresh = table["part"] == "fresh"
    for contrast in (*CONTRASTS[1:], GATES_MOVED):
        tested = fresh & (table["contrast"] == contrast)
        if tested.any():
            p_values = table.loc[tested, "p_less"].to_numpy()
            absent = 0 if contrast == GATES_MOVED else max(0, FRESH_TESTS - len(p_values))
            table.loc[tested, "p_holm"] = holm(np.append(p_values, np.ones(absent)))[: len(p_values)]
    return table


def part_of(differences: Differences) -> str:
    if differences.budget >= UNSTABLE_BUDGET:
        return UNSTABLE
    return next(part for part, cells in PARTS.items() if differences.cell in cells)


def _pooled(part: str, own: Sequence[Differences]) -> Iterable[dict[str, object]]:
    degrees = sum(len(each.values) - 1 for each in own)
    squares = sum(float(np.var(each.values)) * len(each.values) for each in own)
    spread = math.sqrt(squares / degrees)
    for each in own:
        mean, error = float(np.mean(each.values)), spread / math.sqrt(len(each.values))
        half = float(stats.t.ppf(0.975, degrees)) * error
        yield {
            "part": part,
            "cell": each.cell,
            "budget": each.budget,
            "contrast": each.contrast,
            "mean_bits": mean,
            "interval_low_bits": mean - half,
            "interval_high_bits": mean + half,
            "pooled_std_bits": spread,
            "degrees_of_freedom": degrees,
            "seeds": len(each.values),
            "fixed": " ".join(sorted(set(each.chosen))),
            "p_less": sign_flip_p(np.array(each.values), "less") if part == "fresh" else math.nan,
        }


@style.styled
def draw(table: pd.DataFrame) -> Figure:
    """Best fixed split and learned gates against uniform: over d and rank, for other targets, and the other base."""
    figure = Figure(figsize=(style.PAGE_INCHES, 2.5), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.0, 1.0, 0.9))
    table = table[table["part"] != UNSTABLE]
    for axis, (contrast, title) in zip(axes, DRAWN.items(), strict=False):
        axis.set_title(f"{title} minus uniform")
        for shift, (cell, rank) in enumerate(RANKS.items()):
            rows = table[(table["cell"] == cell) & (table["contrast"] == contrast)]
            if not rows.empty:
                x = rows["budget"] * 1.09 ** (shift - 1.5)
                _points(axis, x, rows, RANK_COLOURS[shift], style.CATEGORY_MARKERS[shift], f"rank {rank}", "-")
            again = table[(table["cell"] == f"fresh_{cell}") & (table["contrast"] == contrast)]
            if contrast == LEARNED_GAIN and not again.empty:
                x, drawn = again["budget"] * 1.09 ** (shift - 1.5) * 1.04, axis.get_legend_handles_labels()[1]
                label = None if "fresh seeds" in drawn else "fresh seeds"
                _points(axis, x, again, style.CATEGORY_COLOURS[4], style.CATEGORY_MARKERS[shift], label, "none")
        budgets = sorted(table.loc[table["part"] == "regime", "budget"].unique())
        axis.set_xscale("log")
        axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axis.minorticks_off()
        axis.set_xlabel("subspace dimension d")
    axes[0].set_ylabel("difference of the bound (bits/byte)")
    axes[0].legend(ncols=2, loc="upper left")
    handles, labels = axes[1].get_legend_handles_labels()
    if "fresh seeds" in labels:
        axes[1].legend(handles=[handles[labels.index("fresh seeds")]], loc="upper left")
    _others(axes[2], table)
    axes[0].margins(y=0.2)  # room for the legends
    for axis in axes:
        axis.axhline(0.0, color=style.INK, linewidth=0.6, zorder=1)
    return figure


def _others(axis: Axes, table: pd.DataFrame) -> None:
    rows = table[table["cell"].isin(OTHERS)]
    places = list(dict.fromkeys(zip(rows["cell"], rows["budget"], strict=True)))
    for index, (contrast, label) in enumerate(DRAWN.items()):
        own = rows[rows["contrast"] == contrast]
        x = np.array([places.index(place) for place in zip(own["cell"], own["budget"], strict=True)])
        colour, marker = style.CATEGORY_COLOURS[4 * index], style.CATEGORY_MARKERS[index]
        _points(axis, x + 0.24 * (index - 0.5), own, colour, marker, label, "none")
    labels = [OTHERS[cell] + (f"\n{budget:,}" if cell == "random_base" else "") for cell, budget in places]
    axis.set_xticks(range(len(places)), labels, fontsize=5.2)
    axis.set_title("minus uniform, other networks")
    axis.legend(loc="upper left")


def _points(
    axis: Axes, x: np.ndarray | pd.Series, rows: pd.DataFrame, colour: str, marker: str, label: str | None, line: str
) -> None:
    below, above = (rows["mean_bits"] - rows["interval_low_bits"], rows["interval_high_bits"] - rows["mean_bits"])
    axis.errorbar(
        x,
        rows["mean_bits"],
        yerr=(below, above),
        color=colour,
        marker=marker,
        markersize=3.0,
        linestyle=line,
        elinewidth=0.7,
        label=label,
    )


def kept_columns(runs: pd.DataFrame, cell: str) -> pd.DataFrame:
    columns = [name for name in runs.columns if name in KEPT or name.startswith(KEPT_PREFIXES)]
    return runs[columns].assign(cell=cell)[["cell", *columns]]


def write_study(folder: Path, out: Path) -> None:
    """All files of the study's page; prints the answers."""
    cells = read_cells(folder)
    if not cells:
        raise UserError(f"{folder}: no finished cell; run make study")
    write_table_csv(pd.concat([kept_columns(runs, cell) for cell, runs in cells.items()]), out / RUNS_NAME)
    for start in STARTS:
        if start in cells:
            table = hypothesis_table(cells[start])
            write_table_csv(table, out / f"hypotheses_{start}.csv")
            for hypothesis, question in QUESTIONS.items():
                print(f"{start}, {hypothesis}. {question} {answer(table, hypothesis)}")
    found = [each for cell, runs in cells.items() if cell not in (*STARTS, STILL) for each in contrasts(cell, runs)]
    found += against_still(cells)
    if found:
        write_table_csv(with_intervals(found), out / REGIME_NAME)
    draw_study(out)


def draw_study(out: Path) -> None:
    """The figures, from the tables in the same folder."""
    figures = {}
    runs = pd.read_csv(out / RUNS_NAME)
    for start in STARTS:
        own = runs[runs["cell"] == start]
        if not own.empty:
            figures[f"allocation_grid_{start}"] = allocation.allocation_grid(own)
            figures[f"gating_trend_{start}"] = training.gating_trend(own)
    if (out / REGIME_NAME).exists():
        figures["regime"] = draw(pd.read_csv(out / REGIME_NAME))
    for name, figure in figures.items():
        style.save_figure(figure, png=out / f"{name}.png", pdf=out / f"{name}.pdf")


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if len(folders) not in (1, 2):
        sys.exit(__doc__)
    try:
        (write_study if len(folders) == 2 else draw_study)(*folders)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
