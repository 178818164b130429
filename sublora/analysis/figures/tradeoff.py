"""Complexity against performance at one budget."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from sublora.analysis.arms import Arm, arms_of, configurations, pareto_optimal, with_sizes
from sublora.analysis.figures.reference_lines import loss_levels, mark_levels
from sublora.analysis.figures.style import (
    COLUMN_INCHES,
    FAINT,
    PAGE_INCHES,
    add_legend,
    arm_handles,
    colour_of,
    finite_or_none,
    mark_vacuous,
    marker_of,
    panels_in,
    styled,
)
from sublora.analysis.runs_table import at_budget
from sublora.analysis.yardsticks import Yardstick

KL_LABEL = "KL divergence (nats)"
BPD_LABEL = "Empirical BPD (bits/token)"
BOUND_LABEL = "Bound (bits/token)"


@styled
def pareto(runs: pd.DataFrame, budget: int, yardsticks: Sequence[Yardstick]) -> Figure:
    """Empirical BPD against KL divergence: mean and std over seeds of each arm, the Pareto frontier of the means.

    Lines at the yardsticks' mean losses on the documents that they are scored on.
    """
    rows = at_budget(runs, budget)
    arms = arms_of(rows)
    figure, (axes,) = panels_in(COLUMN_INCHES, 2.3)
    means = _arm_points(axes, rows, arms, "kl_divergence", "empirical_bpd")
    axes.set(xlabel=KL_LABEL, ylabel=BPD_LABEL)
    axes.set_title(f"d = {budget}", loc="left")
    mark_levels(axes, loss_levels(yardsticks))
    _draw_frontier(axes, means)
    frontier = Line2D([], [], color=FAINT, linestyle="--", linewidth=0.9, label="Pareto frontier")
    add_legend(figure, [*arm_handles(arms), frontier])
    return figure


@styled
def compression(runs: pd.DataFrame, budget: int) -> Figure:
    """Three panels: complexity against BPD, complexity against the bound, compressed size against both.

    In the third, filled markers stand at the bound and open ones at the BPD.
    """
    rows = with_sizes(at_budget(runs, budget))
    arms = arms_of(rows)
    figure, (left, middle, right) = panels_in(PAGE_INCHES, 2.0, columns=3)
    for axes, column, label in ((left, "empirical_bpd", BPD_LABEL), (middle, "bound_value", BOUND_LABEL)):
        _arm_points(axes, rows, arms, "kl_divergence", column)
        axes.set(xlabel=KL_LABEL, ylabel=label)
    _arm_points(right, rows, arms, "size_kb", "bound_value")
    _arm_points(right, rows, arms, "size_kb", "empirical_bpd", filled=False)
    log_axis(right)
    right.set(xlabel="Compressed size (KB, log scale)", ylabel="Bound and BPD (bits/token)")
    for axes, letter in zip((left, middle, right), "abc", strict=True):
        axes.set_title(f"({letter}) d = {budget}", loc="left")
    vacuous = mark_vacuous([middle, right], rows["vacuous_bits"].iloc[0])
    code: dict[str, Any] = {"color": FAINT, "marker": "o", "linestyle": "none"}
    bound = Line2D([], [], **code, label="(c) filled: bound")
    loss = Line2D([], [], **code, markerfacecolor="white", label="(c) open: empirical BPD")
    add_legend(figure, [*arm_handles(arms), bound, loss, vacuous])
    return figure


def _arm_points(
    axes: Axes, rows: pd.DataFrame, arms: list[Arm], x: str, y: str, *, filled: bool = True
) -> pd.DataFrame:
    """Mean and std over seeds of each arm; returns the means, one row per arm."""
    table = configurations(rows, [x, y]).droplevel("budget")
    for arm in arms:
        point = table.loc[arm.allocation]
        axes.errorbar(
            point[(x, "mean")],
            point[(y, "mean")],
            xerr=finite_or_none(point[(x, "std")]),
            yerr=finite_or_none(point[(y, "std")]),
            color=colour_of(arm),
            marker=marker_of(arm, arms),
            markersize=5.5 if filled else 4.5,
            markerfacecolor=colour_of(arm) if filled else "white",
            markeredgecolor="white" if filled else colour_of(arm),
            markeredgewidth=0.4 if filled else 1.0,
            elinewidth=0.8,
            linestyle="none",
            zorder=3,
        )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return pd.DataFrame({x: table[(x, "mean")], y: table[(y, "mean")]})


def _draw_frontier(axes: Axes, means: pd.DataFrame) -> None:
    """The staircase of what some arm attains in both measures, open to larger values."""
    x, y = means.columns
    best = means[pareto_optimal(means)].sort_values(x)
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    steps_x, steps_y = [best[x].iloc[0], *best[x], x_high], [y_high, *best[y], best[y].iloc[-1]]
    axes.plot(steps_x, steps_y, color=FAINT, linestyle="--", linewidth=0.9, drawstyle="steps-post", zorder=2)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis that stays readable when its values span far less than a decade."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 10.0 * low:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator())
