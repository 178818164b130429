"""The arms of the experiment, in the one order that every table, figure and test uses."""

import dataclasses
import math
from typing import TYPE_CHECKING

from sublora import config

if TYPE_CHECKING:
    import pandas as pd

EQUAL_RATIO = 0.5
UNIFORM, LEARNED = "uniform", "learned"


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
        name = self.mode.replace("_", " ").capitalize()
        return name if self.ratio is None else f"{name} {self.ratio:g}"

    @property
    def sort_key(self) -> tuple[int, float]:
        return config.allocation_modes().index(self.mode), self.ratio or 0.0


def arms_of(runs: "pd.DataFrame") -> list[Arm]:
    """The arms of a runs table in the order of the kinds of allocation, fixed ones by ascending ratio."""
    distinct = runs[["allocation", "mode", "ratio"]].drop_duplicates()
    arms = [
        Arm(allocation, mode, None if math.isnan(ratio) else float(ratio))
        for allocation, mode, ratio in distinct.itertuples(index=False)
    ]
    return sorted(arms, key=lambda arm: arm.sort_key)
