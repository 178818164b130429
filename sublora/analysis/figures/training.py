"""Losses over training."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublora.analysis.arms import arms_of
from sublora.analysis.style import PAGE_INCHES, add_legend, colour_of, label_outer, panels_in, styled

SETTLED_SHARE = 0.15
"""The y axis shows what happens after this share of the steps; the fall before it would flatten all else."""
LOSSES = (("train_eval_loss_bits", "training loss"), ("val_loss_bits", "validation loss"))


@styled
def loss_curves(runs: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Training and validation loss over steps, means over seeds: one row per budget, one line per arm.

    `metrics`: as `read_metrics` returns it.
    """
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    figure, panels = panels_in(
        PAGE_INCHES, 0.3 + 1.5 * len(budgets), rows=len(budgets), columns=len(LOSSES), sharex=True, sharey=True
    )
    means = metrics.groupby(["budget", "allocation", "step"])[[column for column, _ in LOSSES]].mean()
    cells = [(budget, column, label) for budget in budgets for column, label in LOSSES]
    for axes, (budget, column, label) in zip(panels, cells, strict=True):
        for arm in arms:
            curve = means.loc[(budget, arm.allocation), column]
            axes.plot(curve.index, curve, color=colour_of(arm))
        axes.set_title(f"d = {budget}, {label}", loc="left")
    settled = means[means.index.get_level_values("step") >= SETTLED_SHARE * metrics["step"].max()]
    low, high = settled.min().min(), settled.max().max()
    margin = 0.05 * (high - low) or 0.1
    panels[0].set_ylim(low - margin, high + margin)
    label_outer(panels, len(LOSSES), x="Training step", y="Loss (bits/token)")
    add_legend(figure, [Line2D([], [], color=colour_of(arm), label=arm.label) for arm in arms])
    return figure
