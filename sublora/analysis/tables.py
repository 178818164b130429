"""Tables of the runs: one row per configuration, or per kind of run where networks are compared; CSV and LaTeX."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from sublora.analysis.arms import arms_of, configurations, with_sizes
from sublora.analysis.hypotheses import inference
from sublora.analysis.hypotheses.rows import ALPHA, HEADLINE
from sublora.analysis.runs_table import COMPARED, MODEL_PARAMETERS
from sublora.system.files import atomic_path

COLUMNS = (
    ("BPD", "empirical_bpd", "bits/token", 3),
    ("KL", "kl_divergence", "nats", 0),
    ("Bound", "bound_value", "bits/token", 3),
    ("Size", "size_kb", "KB", 3),
)
"""Heading, column of the runs, unit, decimals in LaTeX. KB is 1,000 bytes."""
NETWORK_MEASURES = (
    "code_bits",
    "compressed_size_bits",
    "val_loss_unquantized_bits",
    "val_loss_bits",
    "test_loss_bits",
    "empirical_bpd",
    "bound_value",
    "bound_all_runs",
)
"""What `network_table` averages over seeds; losses and bounds in bits per token."""
CSV_FORMAT = "%.6g"
LATEX_NOTES = (
    r"% \usepackage{booktabs}; \input this in a table: it fits one column of a two-column article.",
    "% For the caption: Mean and standard deviation over seeds. Bold: the smallest mean bound of a d, and every bound",
    f"% not distinguishable from it (paired t test over seeds, two-sided, Holm-corrected within d, p > {ALPHA}).",
    "% Where all bounds of a d are bold, the seeds do not tell which allocation is best.",
)


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: Budget, Mode, Ratio, then mean and std over seeds of BPD, KL, Bound, Size; Seeds.

    BPD and Bound in bits per token, KL in nats, Size in KB (1,000 bytes). Ratio is empty but for fixed splits; std
    is empty where there is one seed. Last, Among_best: see `among_best`.
    """
    table = configurations(with_sizes(runs), [column for _, column, _, _ in COLUMNS])
    arms = {arm.allocation: arm for arm in arms_of(runs)}
    best = among_best(runs)
    rows = []
    for (budget, allocation), values in table.iterrows():
        arm = arms[allocation]
        row = {"Budget": budget, "Mode": arm.mode, "Ratio": math.nan if arm.ratio is None else arm.ratio}
        for heading, column, _, _ in COLUMNS:
            row |= {heading: values[(column, "mean")], f"{heading}_std": values[(column, "std")]}
        rows.append(row | {"Seeds": int(values[("seeds", "")]), "Among_best": best[budget, allocation]})
    return pd.DataFrame(rows)


def among_best(runs: pd.DataFrame) -> dict[tuple[int, str], bool]:
    """By (budget, allocation), whether it may be the best of its budget as far as the seeds tell.

    True for the smallest mean itself, and for all that a paired t test does not tell from it: differences within each
    seed, two-sided, p corrected by Holm over the allocations of the budget and above ALPHA.
    """
    found: dict[tuple[int, str], bool] = {}
    for budget, rows in runs.groupby("budget"):
        bounds = rows.pivot(index="seed", columns="allocation", values=HEADLINE)
        smallest = bounds.mean().idxmin()
        others = [name for name in bounds if name != smallest]
        p_values = [inference.paired_t_p((bounds[name] - bounds[smallest]).to_numpy()) for name in others]
        undecided = inference.holm(np.array(p_values)) > ALPHA
        found |= {(budget, name): bool(open_) for name, open_ in zip(others, undecided, strict=True)}
        found[budget, smallest] = True
    return found


def kinds_of_run(runs: pd.DataFrame) -> list[str]:
    """Columns that tell runs of one seed apart."""
    compared = [key for key in (COMPARED[0], MODEL_PARAMETERS, *COMPARED[1:]) if key in runs]
    return [*compared, "budget", "allocation"]


def network_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per size, what is trained, budget and allocation, in the order of the runs table.

    Of each measure the mean over seeds and its standard deviation, the sample's, empty where there is one seed; and
    the number of seeds.
    """
    grouped = runs.groupby(kinds_of_run(runs), sort=False)
    table = grouped["seed"].count().rename("seeds").to_frame()
    for measure in NETWORK_MEASURES:
        table[measure], table[f"{measure}_std"] = grouped[measure].mean(), grouped[measure].std()
    return table.reset_index()


def write_table_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Six significant digits; what is missing is left empty."""
    with atomic_path(Path(path)) as temporary:
        table.to_csv(temporary, index=False, float_format=CSV_FORMAT)


def write_latex(summary: pd.DataFrame, path: Path | str) -> None:
    """Write `summary_table`'s result as a LaTeX tabular that fits one column of a two-column article."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(summary_latex(summary), encoding="utf-8")


def summary_latex(table: pd.DataFrame) -> str:
    r"""A tabular for \input in a document that loads booktabs; bold are the bounds with Among_best."""
    lines = [*LATEX_NOTES, r"{\footnotesize\setlength{\tabcolsep}{2pt}%"]
    lines += [rf"\begin{{tabular}}{{@{{}}l{'r' * len(COLUMNS)}@{{}}}}", r"\toprule"]
    lines += [_latex_row(["Allocation", *(heading for heading, *_ in COLUMNS)])]
    lines += [_latex_row(["", *(unit for _, _, unit, _ in COLUMNS)])]
    for budget, rows in table.groupby("Budget", sort=False):
        seeds = rows["Seeds"].iloc[0]
        opening = rf"$d = {budget}$, {seeds} seed{'s' if seeds > 1 else ''}"
        lines += [r"\midrule", rf"\multicolumn{{{len(COLUMNS) + 1}}}{{@{{}}l}}{{{opening}}} \\"]
        for row in rows.to_dict("records"):
            numbers = [
                _latex_number(row[heading], row[f"{heading}_std"], decimals, row["Among_best"] and column == HEADLINE)
                for heading, column, _, decimals in COLUMNS
            ]
            ratio = "" if math.isnan(row["Ratio"]) else f" {row['Ratio']:g}"
            lines.append(_latex_row([row["Mode"].replace("_", " ") + ratio, *numbers]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", ""])


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_number(mean: float, std: float, decimals: int, bold: bool) -> str:
    """Mean and deviation without space around the sign, the deviation without a zero before its point: narrow."""
    number = f"{mean:.{decimals}f}"
    number = f"\\mathbf{{{number}}}" if bold else number
    if math.isnan(std):
        return f"${number}$"
    deviation = f"{std:.{decimals}f}"
    return f"${number}{{\\pm}}{deviation.removeprefix('0') if decimals else deviation}$"
