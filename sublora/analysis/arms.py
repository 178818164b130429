"""The arms of the experiment, in the one order that every table and figure uses, and means over the seeds of each."""

import dataclasses
import math

import pandas as pd

from sublora import config
from sublora.system.errors import UserError

EQUAL_RATIO = 0.5
UNIFORM, FIXED, LEARNED = "uniform", "fixed", "learned"
BITS_PER_KILOBYTE = 8000.0
"""KB as in the figures and tables: 1,000 bytes."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to split the budget between A and B."""

    allocation: str
    """Name in the settings: uniform, fixed-0.2, ..., learned."""
    mode: str
    ratio: float | None
    """B's share of the budget, None where it is not fixed."""

    @property
    def label(self) -> str:
        name = self.mode.replace("_", " ").capitalize()
        return name if self.ratio is None else f"{name} {self.ratio:g}"

    @property
    def sort_key(self) -> tuple[int, float]:
        return config.allocation_modes().index(self.mode), self.ratio or 0.0


def arms_of(runs: pd.DataFrame) -> list[Arm]:
    """The arms of a runs table in the order of the kinds of allocation, fixed ones by ascending ratio."""
    distinct = runs[["allocation", "mode", "ratio"]].drop_duplicates()
    arms = [
        Arm(allocation, mode, None if math.isnan(ratio) else float(ratio))
        for allocation, mode, ratio in distinct.itertuples(index=False)
    ]
    return sorted(arms, key=lambda arm: arm.sort_key)


def configurations(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """One row per configuration, by budget and then arm order.

    Index (budget, allocation); columns (name, "mean" | "std") and ("seeds", ""). The standard deviation is the
    sample's (n - 1), NaN where there is one seed.
    """
    grouped = runs.groupby(["budget", "allocation"], sort=False)
    table = grouped[columns].agg(["mean", "std"])
    table[("seeds", "")] = grouped.size()
    order = [
        (budget, arm.allocation)
        for budget in sorted(runs["budget"].unique())
        for arm in arms_of(runs[runs["budget"] == budget])
    ]
    return table.loc[order]


def best_of_all(runs: pd.DataFrame) -> pd.Series:
    """The run of the smallest bound_all_runs, the bound that allows for picking it among all after looking."""
    return runs.loc[runs["bound_all_runs"].idxmin()]


def with_sizes(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column size_kb: the payload in KB."""
    return runs.assign(size_kb=runs["compressed_size_bits"] / BITS_PER_KILOBYTE)


def improvement_over_uniform(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The runs without the uniform arm, with `improvement_percent`: how far `column` lies below the uniform arm's.

    100 (uniform - arm) / uniform, each run against the uniform run of its budget and seed; positive is better.
    UserError if the grid has no uniform arm.
    """
    uniform = runs[runs["mode"] == "uniform"].set_index(["budget", "seed"])[column]
    if uniform.empty:
        raise UserError("the runs hold no uniform allocation to compare with; add 'uniform' to grid.allocations")
    others = runs[runs["mode"] != "uniform"]
    baseline = uniform.loc[pd.MultiIndex.from_frame(others[["budget", "seed"]])].to_numpy()
    return others.assign(improvement_percent=100.0 * (baseline - others[column]) / baseline)


def pareto_optimal(points: pd.DataFrame) -> pd.Series:
    """Which rows no other row dominates: none is at most as large in every column and smaller in one."""
    values = points.to_numpy()
    no_larger = (values[None, :, :] <= values[:, None, :]).all(axis=2)
    smaller = (values[None, :, :] < values[:, None, :]).any(axis=2)
    return pd.Series(~(no_larger & smaller).any(axis=1), index=points.index)
