"""The bound under every inequality, and against the budget."""

from collections.abc import Sequence

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
INEQUALITY_LABELS = {
    "hoeffding": "Hoeffding",
    "kl_inverse": "kl inverse",
    "empirical_bernstein": "Empirical Bernstein",
    "betting": "Betting",
    "betting_closed_form": "Betting, closed form",
    "hoeffding_subsampled": "Hoeffding",
    "kl_inverse_subsampled": "kl inverse",
    "betting_subsampled": "Betting",
}


@styled
def bound_by_inequality(runs: pd.DataFrame) -> Figure:
    """The bound by each inequality beside the empirical BPD: one panel per budget, one row per arm."""
    columns = inequality_columns(runs)
    headline = NESTED["bounds"] + runs["bound_inequality"].iloc[0]
    if is_anchored(runs):
        headline = "bound_value"
        columns.append(headline)
    loss = Line2D([], [], color=INK, marker="|", markersize=7, linestyle="none", label="Empirical BPD")
    series = [("empirical_bpd", loss)]
    for rank, column in enumerate(columns):
        label = "Anchored" if column == "bound_value" else inequality_label(column.removeprefix(NESTED["bounds"]))
        label += " (headline)" if column == headline else ""
        colour = CATEGORY_COLOURS[rank % len(CATEGORY_COLOURS)]
        marker = CATEGORY_MARKERS[rank % len(CATEGORY_MARKERS)]
        handle = Line2D([], [], color=colour, marker=marker, markersize=4, linestyle="none", label=label)
        series.append((column, handle))
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    down, across = wrapped(len(budgets), MOST_BUDGETS_IN_A_ROW)
    height = down * (0.5 + 0.2 * len(arms))
    width = PAGE_INCHES if across > 1 else COLUMN_INCHES
    figure, panels = panels_in(width, height, rows=down, columns=across, sharex=True, sharey=True)
    table = configurations(runs, [column for column, _ in series])
    for budget, axes in zip(budgets, panels, strict=False):
        for column, handle in series:
            points = table.loc[budget][column].loc[[arm.allocation for arm in arms]]
            axes.errorbar(
                points["mean"],
                range(len(arms)),
                xerr=None if points["std"].isna().any() else points["std"],
                color=handle.get_color(),
                marker=handle.get_marker(),
                markersize=handle.get_markersize(),
                elinewidth=0.8,
                capsize=0.0,
                linestyle="none",
            )
        axes.set_title(f"d = {budget}", loc="left")
    for axes in panels[len(budgets) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    label_outer(panels, across, x="Loss and bound (bits/token)", y="")
    vacuous = mark_vacuous(panels[: len(budgets)], runs["vacuous_bits"].iloc[0], along="x")
    add_legend(figure, [*(handle for _, handle in series), vacuous])
    return figure


def inequality_label(name: str) -> str:
    """How a figure calls an inequality of the record; those without a label of their own by their key."""
    return INEQUALITY_LABELS.get(name, name.replace("_", " "))


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
