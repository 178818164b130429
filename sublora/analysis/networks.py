"""Runs that differ in what is trained, or in the size of the network: one row per kind of run."""

import pandas as pd

from sublora.analysis.runs_table import COMPARED, MODEL_PARAMETERS
from sublora.system.errors import UserError

PART_LABELS = {"lora": "LoRA", "weights": "All weights"}
WHOLE = "identity"
MEASURES = (
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


def part_label(trained: str) -> str:
    """What is trained, in words."""
    adapt, _, projection = trained.partition("-")
    label = PART_LABELS[adapt]
    if projection == WHOLE:
        return label
    return f"Subspace of {label if adapt == 'lora' else label.lower()}"


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
    for measure in MEASURES:
        table[measure], table[f"{measure}_std"] = grouped[measure].mean(), grouped[measure].std()
    return table.reset_index()


def require(runs: pd.DataFrame, column: str, key: str) -> None:
    """UserError if the grid does not compare what a figure shows."""
    if column not in runs:
        raise UserError(f"the runs table has no column {column}; set {key}, and run what it adds")
