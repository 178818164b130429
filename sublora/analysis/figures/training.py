"""Losses and gates over the steps of training, and where the gates ended.

Gamma is the share of the budget that a group of parameters gives to B.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublora.analysis.arms import arms_of
from sublora.analysis.figures.reference_lines import name_ends
from sublora.analysis.figures.style import (
    COLUMN_INCHES,
    FAINT,
    PAGE_INCHES,
    add_legend,
    arm_handles,
    colour_of,
    label_outer,
    marker_of,
    ordered_colours,
    panels_in,
    styled,
    wrapped,
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


SETTLED_SHARE = 0.15
"""The y axis shows what happens after this share of the steps; the fall before it would flatten all else."""
MOST_MARKERS = 8
"""On one curve, about; more would hide it."""
MOST_SEEDS_IN_A_ROW = 5
MOST_LAYERS_NAMED = 12
"""With more layers the legend of the traces names every second, third, ...: their colours are ordered."""
MOST_LAYERS_NUMBERED = 6
"""At the ends of the lines in one panel: it has room for no more and the head."""
HEAD_COLOUR = "#d55e00"
PHASE_COLOUR = "#eeeeee"
LOSSES = (("train_eval_loss_bits", "training loss"), ("val_loss_bits", "validation loss"))


@styled
def loss_curves(runs: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Training and validation loss over steps, means over seeds: one row per budget, a colour and marker per arm.

    `metrics`: as `read_metrics` returns it.
    """
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    figure, panels = panels_in(
        PAGE_INCHES, 0.3 + 1.5 * len(budgets), rows=len(budgets), columns=len(LOSSES), sharex=True, sharey=True
    )
    means = metrics.groupby(["budget", "allocation", "step"])[[column for column, _ in LOSSES]].mean()
    cells = [(budget, column, label) for budget in budgets for column, label in LOSSES]
    for axes, (budget, column, label) in zip(panels, cells, strict=True):
        for rank, arm in enumerate(arms):
            curve = means.loc[(budget, arm.allocation), column]
            axes.plot(
                curve.index,
                curve,
                color=colour_of(arm),
                marker=marker_of(arm, arms),
                markersize=3.8,
                markevery=_marked_points(len(curve), rank, len(arms)),
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
        axes.set_title(f"d = {budget}, {label}", loc="left")
    settled = means[means.index.get_level_values("step") >= SETTLED_SHARE * metrics["step"].max()]
    low, high = settled.min().min(), settled.max().max()
    margin = 0.05 * (high - low) or 0.1
    panels[0].set_ylim(low - margin, high + margin)
    label_outer(panels, len(LOSSES), x="Training step", y="Loss (bits/token)")
    add_legend(figure, arm_handles(arms, line=True))
    return figure


def _marked_points(points: int, rank: int, arms: int) -> slice:
    """Points of a curve that carry the arm's marker: all of a few, else spaced, those of one arm between the others."""
    step = max(1, round(points / MOST_MARKERS))
    return slice(step * rank // arms, None, step)


@styled
def gating_traces(runs: pd.DataFrame, traces: pd.DataFrame) -> Figure:
    """Gamma over training steps: one panel per run (rows budgets, columns seeds), one line per group.

    The number of a layer stands where its line ends; grey is the last phase, with the hard split. `traces`: as
    `read_gating_traces` returns it.
    """
    groups = gate_groups(runs)
    layers = [group for group in groups if group != HEAD]
    colours = dict(zip(layers, ordered_colours(len(layers)), strict=True)) | {HEAD: HEAD_COLOUR}
    budgets, seeds = sorted(traces["budget"].unique()), sorted(traces["seed"].unique())
    rows_each, columns = wrapped(len(seeds), MOST_SEEDS_IN_A_ROW)
    rows = rows_each * len(budgets)
    width = PAGE_INCHES if columns > 1 else COLUMN_INCHES
    figure, panels = panels_in(width, 0.3 + 1.25 * rows, rows=rows, columns=columns, sharex=True, sharey=True)
    for axes in panels:
        axes.set_visible(False)
    drawn = []
    for row, budget in enumerate(budgets):
        for rank, seed in enumerate(seeds):
            axes = panels[row * rows_each * columns + rank]
            axes.set_visible(True)
            run = traces[(traces["budget"] == budget) & (traces["seed"] == seed)]
            _draw_trace(axes, run, groups, colours)
            drawn.append((axes, run))
            axes.set_title(f"d = {budget}, seed {seed}", loc="left")
    label_outer(panels, columns, x="Training step", y=GAMMA_LABEL)
    panels[0].set_xlim(right=traces["step"].max())  # the names stand where the lines end
    figure.draw_without_rendering()
    numbered = _some(groups, MOST_LAYERS_NUMBERED)
    for axes, run in drawn:
        last = run[run["step"] == run["step"].max()].set_index("group")["gamma"]
        name_ends(axes, [(group, last[group], colours[group]) for group in numbered])
    add_legend(figure, [_handle(group, colours[group]) for group in _some(groups, MOST_LAYERS_NAMED)])
    return figure


def _some(groups: list[str], most: int) -> list[str]:
    """Every, every second, third, ... layer, so that they are at most that many, and the head."""
    layers = [group for group in groups if group != HEAD]
    step = -(-len(layers) // most) or 1
    return [*layers[::step], *(group for group in groups if group == HEAD)]


def _handle(group: str, colour: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=_line(group), label="Head" if group == HEAD else f"Layer {group}")


def _draw_trace(axes: Axes, run: pd.DataFrame, groups: list[str], colours: dict[str, str]) -> None:
    hard = run.loc[run["mask_width"] == 0.0, "step"]
    if not hard.empty:
        axes.axvspan(hard.min(), hard.max(), color=PHASE_COLOUR, linewidth=0.0, zorder=0)
    axes.axhline(0.5, color=FAINT, linestyle="--", linewidth=0.6, zorder=1)
    for group in groups:
        line = run[run["group"] == group].sort_values("step")
        axes.plot(line["step"], line["gamma"], color=colours[group], linestyle=_line(group), linewidth=0.9)


def _line(group: str) -> str:
    return "-." if group == HEAD else "-"
