"""The tables and the figure of the study of subspaces, from its runs.csv; docs/studies/subspace/plan.md has the tests.

A value is a run's bound minus another's on the same seed and budget, bits per token; negative if the first is better.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sublora.analysis.arms import LEARNED, UNIFORM
from sublora.analysis.figures import style
from sublora.analysis.hypotheses.inference import holm, sign_flip_p, t_interval
from sublora.analysis.hypotheses.rows import HEADLINE
from sublora.analysis.tables import write_table_csv
from sublora.system.errors import UserError

RANDOM, SCALED = "random", "gradient"
CANDIDATES = (RANDOM, SCALED, "fisher", "cores", "vectors")
LABELS = {
    RANDOM: "random",
    SCALED: "scales per matrix, gradient(-0.5)",
    "fisher": "scales per row, fisher(-0.25)",
    "cores": "LoRA-XS cores",
    "vectors": "gains and biases",
}
MARGIN_BITS = 0.01
"""A gain below this is taken for none, as in the study of allocations."""
EQUAL_SPLIT = "fixed-0.5"
DECIDING_SPLITS = ("fixed-0.2", "fixed-0.8")


def differences(runs: pd.DataFrame, first: dict[str, object], second: dict[str, object]) -> np.ndarray:
    """Return the bound of the runs with some values minus that of others, paired by budget and seed."""
    keys = ["budget", "seed"]
    one, other = (
        runs.loc[(runs[list(where)] == pd.Series(where)).all(axis=1)].set_index(keys)[HEADLINE]
        for where in (first, second)
    )
    return (one - other).dropna().to_numpy()


def compared(label: dict[str, object], values: np.ndarray) -> dict[str, object]:
    """Return a row: mean, 95 % t interval, one-sided sign-flip p of a gain, and of a gain of at least the margin."""
    low, high = t_interval(values)
    return label | {
        "seeds": len(values),
        "mean_bits": float(values.mean()),
        "interval_low_bits": low,
        "interval_high_bits": high,
        "p_better": sign_flip_p(values, "less"),
        "p_margin_rejected": sign_flip_p(values + MARGIN_BITS, "greater"),
    }


def table_of_candidates(runs: pd.DataFrame) -> pd.DataFrame:
    """Return each candidate minus random, over all budgets (with Holm's p over the candidates) and at each."""
    uniform, rows = runs[runs["allocation"] == UNIFORM], []
    for candidate in CANDIDATES[1:]:
        for budget in ("all", *sorted(uniform["budget"].unique())):
            own = uniform if budget == "all" else uniform[uniform["budget"] == budget]
            values = differences(own, {"candidate": candidate}, {"candidate": RANDOM})
            if not len(values):
                continue
            mine = own[own["candidate"] == candidate]
            means = {"bound": mine[HEADLINE].mean(), "code_bits": mine["code_bits"].mean()}
            rows.append(compared({"candidate": candidate, "budget": budget} | means, values))
    table = pd.DataFrame(rows)
    overall = table["budget"] == "all"
    # A candidate without runs counts with p = 1.
    p_values = table.loc[overall, "p_better"].to_numpy()
    padded = np.append(p_values, np.ones(len(CANDIDATES) - 1 - len(p_values)))
    table.loc[overall, "p_holm"] = holm(padded)[: len(p_values)]
    return table


def table_of_splits(runs: pd.DataFrame) -> pd.DataFrame:
    """Return splits against the equal one and against uniform, with and without scales, at each budget.

    p_holm: over the two splits that decide, in one cell.
    """
    rows = []
    for candidate in (SCALED, RANDOM):
        for budget in sorted(runs.loc[runs["allocation"] == EQUAL_SPLIT, "budget"].unique()):
            own = runs[(runs["candidate"] == candidate) & (runs["budget"] == budget)]
            cell = []
            pairs = [(split, EQUAL_SPLIT) for split in (*DECIDING_SPLITS, LEARNED)]
            for first, second in [*pairs, (EQUAL_SPLIT, UNIFORM), (LEARNED, UNIFORM)]:
                values = differences(own, {"allocation": first}, {"allocation": second})
                if len(values):
                    label = {"candidate": candidate, "budget": budget, "contrast": f"{first} - {second}"}
                    cell.append(compared(label, values))
            deciding = [row for row in cell if str(row["contrast"]).split(" - ")[0] in DECIDING_SPLITS]
            if len(deciding) == len(DECIDING_SPLITS):
                corrected = holm(np.array([row["p_better"] for row in deciding], dtype=np.float64))
                for row, p in zip(deciding, corrected, strict=True):
                    row["p_holm"] = float(p)
            rows += cell
    return pd.DataFrame(rows)


@style.styled
def draw(runs: pd.DataFrame) -> Figure:
    """Draw the bound against C, a curve per subspace and a point per budget, with all runs behind."""
    figure = Figure(figsize=(style.PAGE_INCHES, 3.2), layout="constrained")
    axis = figure.subplots()
    uniform = runs[runs["allocation"] == UNIFORM]
    for index, candidate in enumerate(CANDIDATES):
        own = uniform[uniform["candidate"] == candidate]
        if own.empty:
            continue
        means = own.groupby("budget")[["code_bits", HEADLINE]].mean()
        colour, marker = style.CATEGORY_COLOURS[index], style.CATEGORY_MARKERS[index]
        axis.scatter(own["code_bits"], own[HEADLINE], color=colour, marker=marker, s=6.0, alpha=0.35, linewidth=0)
        axis.plot(
            means["code_bits"], means[HEADLINE], color=colour, marker=marker, markersize=4.0, label=LABELS[candidate]
        )
    axis.set_xscale("log")
    axis.set_xlabel("C (bits)")
    axis.set_ylabel("bound (bits/byte)")
    axis.legend()
    return figure


def verdicts(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each candidate, by the plan's tests at 0.05."""
    found = []
    for row in table[table["budget"] == "all"].itertuples():
        change = f"{row.mean_bits:+.4f} ({row.interval_low_bits:+.4f} to {row.interval_high_bits:+.4f})"
        if row.p_holm <= 0.05:
            verdict = "better than random"
        elif row.p_margin_rejected <= 0.05:
            verdict = f"gains less than {MARGIN_BITS} bits"
        else:
            verdict = "undecided"
        found.append(f"{row.candidate}: {verdict}, {change}, p {row.p_holm:.4f} under Holm, {row.seeds} seeds")
    return found


def summarize(path: Path, page: Path) -> Sequence[str]:
    """Write table.csv, splits.csv and the figure; print and return the verdicts. UserError without runs to compare."""
    if not path.exists():
        raise UserError(f"{path}: no such file; run the study first")
    runs = pd.read_csv(path)
    if not {RANDOM} < set(runs["candidate"]):
        raise UserError(f"{path}: holds no runs of {RANDOM} and of another candidate; run the study first")
    table = table_of_candidates(runs)
    write_table_csv(table, page / "table.csv")
    splits = table_of_splits(runs)
    if not splits.empty:
        write_table_csv(splits, page / "splits.csv")
    style.save_figure(draw(runs), png=page / "subspaces.png", pdf=page / "subspaces.pdf")
    sentences = verdicts(table)
    print("\n".join(sentences))
    return sentences
