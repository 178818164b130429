"""The yardsticks' table and verdicts as the report shows them: its first section."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sublora.analysis.summary import best_of_all
from sublora.analysis.yardsticks import BEST_RUN, LABELS, Yardstick, conclusion, verdicts, yardstick_table

OUTCOME_LABELS = {
    "beaten": "beaten",
    "smaller certificate": "certificate smaller",
    "nothing added": "nothing added",
}
ROW_LABELS = LABELS | {
    BEST_RUN: "the best network",
    "best_run_alone": "the same, named beforehand",
    "best_run_held_out": "the same, held-out bound",
}
NONE = "\N{EN DASH}"


def yardstick_section(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> dict[str, Any]:
    """Headline in words, one verdict per yardstick, and the table's rows as texts."""
    found = verdicts(best_of_all(runs)["bound_all_runs"], yardsticks)
    return {
        "conclusion": conclusion(found),
        "verdicts": [
            {"outcome": OUTCOME_LABELS[each.outcome], "good": each.outcome == "beaten", "sentence": each.sentence}
            for each in found
        ],
        "rows": [_cells(row) for row in yardstick_table(runs, yardsticks).to_dict("records")],
    }


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    name = ROW_LABELS[row["model"]]
    return {
        "name": name[0].upper() + name[1:],
        "description": row["description"],
        "best": row["model"] == BEST_RUN,
        "numbers": [
            f"{row['test_loss_bits']:.3f}",
            f"{row['bound_bits']:.3f}",
            f"{row['message_bits']:,.0f}",
            *(NONE if pd.isna(row[key]) else f"{row[key]:,}" for key in ("n", "m")),
        ],
        "smoothing": NONE if pd.isna(row["smoothing"]) else row["smoothing"],
    }
