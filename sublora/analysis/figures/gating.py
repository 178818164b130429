"""Where the gates ended: gamma, the share of the budget that a group gives to B, after training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublora.analysis.figures.style import (
    COLUMN_INCHES,
    FAINT,
    PAGE_INCHES,
    add_legend,
    ordered_colours,
    panels_in,
    styled,
)
from sublora.analysis.runs_table import HEAD, NESTED, at_budget, gate_groups, learned_runs

GAMMA_LABEL = "γ (share of B)"
GAMMA_COLOURS = "PuOr_r"
HEAD_GAP = 0.4
"""Extra distance of the head from the last layer: it is no deeper layer."""
BUDGET_MARKERS = ("o", "s", "^", "D", "v", "P")


@styled
def gating_heatmap(runs: pd.DataFrame, budget: int) -> Figure:
    """Final gamma of each gate: one row per seed, one column per group, the number in every cell."""
    import seaborn  # takes longer to import than all the rest; only this figure needs it

    rows = learned_runs(at_budget(runs, budget)).sort_values("seed").set_index("seed")
    groups = gate_groups(rows)
    gamma_SG = rows[[NESTED["gamma"] + group for group in groups]].set_axis(groups, axis="columns")
    width = COLUMN_INCHES if len(groups) <= 8 else PAGE_INCHES
    narrow = (width - 1.1) / len(groups) < 0.24
    figure, (axes,) = panels_in(width, max(1.25, 0.75 + 0.24 * len(rows)))
    seaborn.heatmap(
        gamma_SG,
        ax=axes,
        cmap=GAMMA_COLOURS,
        vmin=0.0,
        vmax=1.0,
        linewidths=0.5,
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 5.5 if narrow else 6.5, "rotation": 90 if narrow else 0},
        cbar_kws={"label": GAMMA_LABEL, "ticks": [0.0, 0.5, 1.0], "pad": 0.02},
    )
    axes.set(xlabel="Layer", ylabel="Seed")
    axes.tick_params(length=0, rotation=0)
    axes.set_title(f"d = {budget}", loc="left")
    return figure


@styled
def gating_trend(runs: pd.DataFrame) -> Figure:
    """Final gamma against depth: mean and std over seeds, one line per budget, the head set apart."""
    learned = learned_runs(runs)
    groups = gate_groups(runs)
    budgets = sorted(learned["budget"].unique())
    handles = []
    for rank, (budget, colour) in enumerate(zip(budgets, ordered_colours(len(budgets)), strict=True)):
        marker = BUDGET_MARKERS[rank % len(BUDGET_MARKERS)]
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"d = {budget}"))
    figure, (axes,) = panels_in(COLUMN_INCHES if len(groups) <= 8 else PAGE_INCHES, 2.0)
    position = {group: index + HEAD_GAP * (group == HEAD) for index, group in enumerate(groups)}
    for rank, (budget, handle) in enumerate(zip(budgets, handles, strict=True)):
        rows = learned[learned["budget"] == budget]
        shift = 0.09 * (rank - (len(budgets) - 1) / 2)
        for part, linestyle in (([g for g in groups if g != HEAD], "-"), ([g for g in groups if g == HEAD], "none")):
            gamma = rows[[NESTED["gamma"] + group for group in part]]
            axes.errorbar(
                [position[group] + shift for group in part],
                gamma.mean(),
                yerr=gamma.std() if len(rows) > 1 else None,
                color=handle.get_color(),
                marker=handle.get_marker(),
                markersize=3.5,
                elinewidth=0.8,
                linestyle=linestyle,
            )
    axes.axhline(0.5, color=FAINT, linestyle="--", linewidth=0.8, zorder=1)
    axes.set_xticks(list(position.values()), list(position), rotation=90 if len(groups) > 26 else 0)
    axes.set(xlabel="Layer", ylabel=GAMMA_LABEL)
    add_legend(figure, handles)
    return figure
