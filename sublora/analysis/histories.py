"""Histories of the runs over their training steps: losses and gates."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from sublora.analysis.runs_table import check_last_line, learned_runs
from sublora.system.errors import UserError
from sublora.system.names import GATES_NAME, METRICS_NAME

GATE_COLUMNS = ("step", "mask_width", "group", "gamma", "gradient_snr")
TEXT_COLUMNS = ("group",)
OPEN_COLUMNS = ("gradient_snr",)
"""Columns in which a row may leave the number open."""
LOSS_COLUMNS = ("step", "train_eval_loss_bits", "val_loss_bits")
RUN_COLUMNS = ("name", "budget", "allocation", "seed")


def read_gating_traces(paths: Iterable[Path | str], runs: pd.DataFrame, *, steps: int | None = None) -> pd.DataFrame:
    """gating_trace.csv of every learned run: name, budget, allocation, seed, and its columns GATE_COLUMNS.

    gradient_snr, |mean| / standard deviation of the gate's gradient since the row before, is NaN where the file leaves
    it open: with the hard split gates have no gradient. Traces of arms without gates may be among the paths and are
    left out. UserError if one of a learned run is missing, empty, cut short or damaged; `steps`: those of the training,
    without which the end of a history is not known.
    """
    return _read_histories(paths, learned_runs(runs), GATE_COLUMNS, GATES_NAME, steps)


def read_metrics(paths: Iterable[Path | str], runs: pd.DataFrame, *, steps: int | None = None) -> pd.DataFrame:
    """metrics.csv of every run: name, budget, allocation, seed, step and its two evaluation losses (bits per token).

    UserError as for `read_gating_traces`.
    """
    return _read_histories(paths, runs, LOSS_COLUMNS, METRICS_NAME, steps)


def _read_histories(
    paths: Iterable[Path | str], runs: pd.DataFrame, columns: tuple[str, ...], kind: str, steps: int | None
) -> pd.DataFrame:
    """The folder a file lies in is named after its run; the run's facts come from the runs table."""
    by_name = {Path(path).parent.name: Path(path) for path in paths}
    tables = []
    for run in runs[list(RUN_COLUMNS)].to_dict("records"):
        if run["name"] not in by_name:
            raise UserError(f"run {run['name']}: its {kind} is not among the files given")
        tables.append(_read_history(by_name[run["name"]], columns, steps).assign(**run))
    return pd.concat(tables, ignore_index=True)


def _read_history(path: Path, columns: tuple[str, ...], steps: int | None) -> pd.DataFrame:
    try:
        check_last_line(path)
        table = pd.read_csv(path, usecols=list(columns), dtype=dict.fromkeys(TEXT_COLUMNS, str))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; train the run again") from None
    except (ValueError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a table with columns {', '.join(columns)}: {why}") from None
    if table.empty:
        raise UserError(f"{path}: holds no rows; train the run again")
    for column in columns:
        values = table[column].dropna() if column in OPEN_COLUMNS else table[column]
        numeric = pd.api.types.is_numeric_dtype(values)
        if column not in TEXT_COLUMNS and not (numeric and np.isfinite(values).all()):
            raise UserError(f"{path}: {column} is not a finite number in every row; train the run again")
    _check_end(path, table, steps)
    return table


def _check_end(path: Path, table: pd.DataFrame, steps: int | None) -> None:
    """The history reaches the last step, and each step of it has as many rows as the first."""
    last = table["step"].iloc[-1]
    rows = table.groupby("step").size()
    if (steps is not None and last != steps) or rows.iloc[-1] != rows.iloc[0]:
        expected = "the end of the training" if steps is None else f"step {steps}"
        raise UserError(f"{path}: cut short: it ends within step {last}, expected {expected}; train the run again")
