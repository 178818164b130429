"""Tables of the runs: one row per configuration, or per kind of run where networks are compared; CSV and LaTeX."""

import math
from pathlib import Path

import pandas as pd

from sublora.analysis.arms import arms_of, configurations, with_sizes
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


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: Budget, Mode, Ratio, then mean and std over seeds of BPD, KL, Bound, Size; Seeds.

    BPD and Bound in bits per token, KL in nats, Size in KB (1,000 bytes). Ratio is empty but for fixed splits; std
    is empty where there is one seed.
    """
    table = configurations(with_sizes(runs), [column for _, column, _, _ in COLUMNS])
    arms = {arm.allocation: arm for arm in arms_of(runs)}
    rows = []
    for (budget, allocation), values in table.iterrows():
        arm = arms[allocation]
        row = {"Budget": budget, "Mode": arm.mode, "Ratio": arm.ratio}
        for heading, column, _, _ in COLUMNS:
            row |= {heading: values[(column, "mean")], f"{heading}_std": values[(column, "std")]}
        rows.append(row | {"Seeds": int(values[("seeds", "")])})
    return pd.DataFrame(rows)


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


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Six significant digits; what is missing is left empty."""
    with atomic_path(Path(path)) as temporary:
        table.to_csv(temporary, index=False, float_format=CSV_FORMAT)


def write_latex(summary: pd.DataFrame, path: Path | str) -> None:
    """Write `summary_table`'s result as a LaTeX tabular, the smallest bound of each budget in bold."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(summary_latex(summary), encoding="utf-8")


def summary_latex(table: pd.DataFrame) -> str:
    r"""A tabular for \input in a document that loads booktabs."""
    best = table["Bound"] == table.groupby("Budget")["Bound"].transform("min")
    opens = table["Budget"].ne(table["Budget"].shift()) & (table.index > 0)
    cells: dict[tuple[str, str], list[str]] = {
        # A row may begin with the rule above it.
        ("Budget", ""): [
            f"\\midrule\n{d}" if first else str(d) for d, first in zip(table["Budget"], opens, strict=True)
        ],
        ("Mode", ""): list(table["Mode"]),
        ("Ratio", ""): ["--" if math.isnan(ratio) else f"{ratio:g}" for ratio in table["Ratio"]],
    }
    for heading, _, unit, decimals in COLUMNS:
        columns = zip(table[heading], table[f"{heading}_std"], best & (heading == "Bound"), strict=True)
        cells[heading, f"({unit})"] = [_latex_number(mean, std, decimals, is_bold) for mean, std, is_bold in columns]
    styler = pd.DataFrame(cells).style.hide(axis="index")
    body = styler.to_latex(hrules=True, column_format="rlr" + "r" * len(COLUMNS), sparse_columns=False)
    return (
        "% \\usepackage{booktabs}; mean and standard deviation over seeds; the smallest bound of a budget in bold\n"
        + body
    )


def _latex_number(mean: float, std: float, decimals: int, bold: bool) -> str:
    number = f"{mean:.{decimals}f}"
    number = f"\\mathbf{{{number}}}" if bold else number
    return f"${number}$" if math.isnan(std) else f"${number} \\pm {std:.{decimals}f}$"
