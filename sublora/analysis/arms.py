"""The arms of the experiment, in the one order that every table, figure and test uses."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MODES = ("uniform", "fixed", "learned")
EQUAL_RATIO = 0.5


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to split the budget between A and B."""

    allocation: str
    """Name in the settings: uniform, fixed-0.2, ..., learned."""
    mode: str
    ratio: float | None
    """B's share of a fixed split, None otherwise."""

    @property
    def label(self) -> str:
        return f"Fixed {self.ratio:g}" if self.ratio is not None else self.mode.capitalize()

    @property
    def sort_key(self) -> tuple[int, float]:
        return MODES.index(self.mode), self.ratio or 0.0


def arms_of(runs: "pd.DataFrame") -> list[Arm]:
    """The arms of a runs table: uniform, fixed by ascending ratio, learned."""
    distinct = runs[["allocation", "mode", "ratio"]].drop_duplicates()
    arms = [
        Arm(allocation, mode, float(ratio) if mode == "fixed" else None)
        for allocation, mode, ratio in distinct.itertuples(index=False)
    ]
    return sorted(arms, key=lambda arm: arm.sort_key)
