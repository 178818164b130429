"""The bound under every inequality, and against the budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sublora.analysis.arms import arms_of, configurations
from sublora.analysis.figures.reference_lines import bound_levels, mark_levels
from sublora.analysis.figures.style import (
    CATEGORY_COLOURS,
    CATEGORY_MARKERS,
    COLUMN_INCHES,
    INK,
    PAGE_INCHES,
    add_legend,
    arm_handles,
    colour_of,
    label_outer,
    mark_vacuous,
    marker_of,
    panels_in,
    styled,
    wrapped,
)
from sublora.analysis.runs_table import NESTED, inequality_columns, is_anchored
from sublora.analysis.yardsticks import Yardstick

MOST_BUDGETS_IN_A_ROW = 4
LANE_INCHES = 0.065
"""Height of a lane within an arm's row: that of a marker."""
LOSS_STROKE = 0.4
"""Half the length of the stroke at the empirical BPD, as a share of an arm's row."""
ROW_RULE: dict[str, Any] = {"color": "#e4e4e4", "linewidth": 0.5, "zorder": 0}
INEQUALITY_LABELS = {
    "hoeffding": "Hoeffding",
    "kl_inverse": "kl inverse",
    "empirical_bernstein": "Empirical Bernstein",
    "betting": "Betting",
    "betting_closed_form": "Betting, closed form",
}


@styled
def bound_by_inequality(runs: pd.DataFrame) -> Figure:
    """The bound by each inequality beside the empirical BPD: one panel per budget, one row per arm.

    Within a row every inequality has a lane of its own, in the order of the legend, so that none hides another.
    """
    arms, budgets, series = arms_of(runs), sorted(runs["budget"].unique()), _inequality_series(runs)
    # Panels: rows of arms, each as high as its lanes.
    down, across = wrapped(len(budgets), MOST_BUDGETS_IN_A_ROW)
    row_inches = max(0.2, LANE_INCHES * (len(series) + 1))
    height = down * (0.5 + row_inches * len(arms))
    width = PAGE_INCHES if across > 1 else COLUMN_INCHES
    figure, panels = panels_in(width, height, rows=down, columns=across, sharex=True, sharey=True)
    table = configurations(runs, ["empirical_bpd", *series])
    names = [arm.allocation for arm in arms]
    for budget, axes in zip(budgets, panels, strict=False):
        _draw_losses(axes, table.loc[budget]["empirical_bpd"].loc[names])
        for rank, (column, handle) in enumerate(series.items()):
            lane = (rank + 1) / (len(series) + 1) - 0.5
            _draw_lane(axes, table.loc[budget][column].loc[names], lane, handle)
        axes.hlines(
            [row + 0.5 for row in range(len(arms) - 1)], 0.0, 1.0, **ROW_RULE, transform=axes.get_yaxis_transform()
        )
        axes.grid(axis="y", visible=False)
        axes.set_title(f"d = {budget}", loc="left")
    for axes in panels[len(budgets) :]:
        axes.set_visible(False)
    # Names, the vacuous level, the legend.
    panels[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    label_outer(panels, across, x="Loss and bound (bits/token)", y="")
    vacuous = mark_vacuous(panels[: len(budgets)], runs["vacuous_bits"].iloc[0], along="x")
    loss = Line2D([], [], color=INK, marker="|", markersize=7, linestyle="none", label="Empirical BPD")
    add_legend(figure, [loss, *series.values(), vacuous])
    return figure


def _inequality_series(runs: pd.DataFrame) -> dict[str, Line2D]:
    """Columns of the runs with a bound each, and how it is drawn and named; the headline is marked."""
    columns = inequality_columns(runs)
    headline = NESTED["bounds"] + runs["bound_inequality"].iloc[0]
    if is_anchored(runs):
        headline = "bound_value"
        columns.append(headline)
    series = {}
    for rank, column in enumerate(columns):
        label = "Anchored" if column == "bound_value" else inequality_label(column.removeprefix(NESTED["bounds"]))
        label += " (headline)" if column == headline else ""
        colour = CATEGORY_COLOURS[rank % len(CATEGORY_COLOURS)]
        marker = CATEGORY_MARKERS[rank % len(CATEGORY_MARKERS)]
        series[column] = Line2D([], [], color=colour, marker=marker, markersize=4, linestyle="none", label=label)
    return series


def _draw_losses(axes: Axes, points: pd.DataFrame) -> None:
    """A stroke across all lanes of each row at the mean, its spread in the middle."""
    rows = np.arange(len(points))
    axes.vlines(points["mean"], rows - LOSS_STROKE, rows + LOSS_STROKE, color=INK, linewidth=1.0)
    spread = None if points["std"].isna().any() else points["std"]
    axes.errorbar(points["mean"], rows, xerr=spread, color=INK, elinewidth=0.8, capsize=0.0, linestyle="none")


def _draw_lane(axes: Axes, points: pd.DataFrame, lane: float, handle: Line2D) -> None:
    """Mean and std of one inequality, `lane` below the middle of each row."""
    axes.errorbar(
        points["mean"],
        np.arange(len(points)) + lane,
        xerr=None if points["std"].isna().any() else points["std"],
        color=handle.get_color(),
        marker=handle.get_marker(),
        markersize=handle.get_markersize(),
        markeredgecolor="white",
        markeredgewidth=0.3,
        elinewidth=0.8,
        capsize=0.0,
        linestyle="none",
    )


def inequality_label(name: str) -> str:
    """How a figure calls an inequality of the record, alike with and without a draw.

    One without a label is called by its key.
    """
    name = name.removesuffix("_subsampled")
    return INEQUALITY_LABELS.get(name, name.replace("_", " ").capitalize())


@styled
def bound_against_budget(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> Figure:
    """The bound and the empirical BPD against d: mean and std over seeds, one curve per arm.

    Lines at the yardsticks' bounds beside those of the networks.
    """
    arms = arms_of(runs)
    figure, (left, right) = panels_in(PAGE_INCHES, 2.1, columns=2)
    _against_budget(left, runs, "empirical_bpd", "Empirical BPD (bits/token)")
    _against_budget(right, runs, "bound_value", "Bound (bits/token)")
    left.set_title("(a)", loc="left")
    right.set_title("(b)", loc="left")
    mark_levels(right, bound_levels(yardsticks))
    add_legend(figure, arm_handles(arms, line=True))
    return figure


def _against_budget(axes: Axes, runs: pd.DataFrame, column: str, label: str) -> None:
    """Arms stand a little apart at each budget, so that their error bars can be told from each other."""
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    table = configurations(runs, [column])[column]
    axes.set_xscale("log")
    if len(budgets) == 1:
        axes.set_xlim(budgets[0] / 1.5, budgets[0] * 1.5)
    low, high = axes.get_xlim() if len(budgets) == 1 else (budgets[0], budgets[-1])
    spread = (high / low) ** 0.008
    for rank, arm in enumerate(arms):
        points = table.xs(arm.allocation, level="allocation").loc[budgets]
        shift = spread ** (rank - (len(arms) - 1) / 2)
        axes.errorbar(
            [budget * shift for budget in budgets],
            points["mean"],
            yerr=None if points["std"].isna().any() else points["std"],
            color=colour_of(arm),
            marker=marker_of(arm, arms),
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=0.8,
        )
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="Budget d (log scale)", ylabel=label)
