"""The arms side by side: bars of the metrics, and what the bound is made of."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sublora.analysis.arms import arms_of
from sublora.analysis.runs_table import at_budget
from sublora.analysis.style import (
    COLUMN_INCHES,
    INK,
    PAGE_INCHES,
    add_legend,
    colour_of,
    finite_or_none,
    mark_vacuous,
    panels_in,
    styled,
)
from sublora.analysis.summary import configurations, improvement_over_uniform, with_sizes

MOST_LABELLED_BARS = 10
"""More bars than these in a panel leave no room for a number above each."""
DECOMPOSITION = (
    ("loss_before", "Loss before quantization", "#9ecae1", ""),
    ("loss_added", "Added by quantization", "#e6550d", ""),
    ("complexity", "Complexity", "#756bb1", "////"),
)


@styled
def allocation_grid(runs: pd.DataFrame) -> Figure:
    """2 x 2 panels of bars, a group a budget, a bar an arm: BPD, bound, compressed size, improvement over uniform."""
    runs = with_sizes(runs)
    figure, panels = panels_in(PAGE_INCHES, 4.0, rows=2, columns=2)
    _bars(panels[0], runs, "empirical_bpd", "Empirical BPD (bits/token)", "{:.2f}")
    _bars(panels[1], runs, "bound_value", "Bound (bits/token)", "{:.2f}")
    _bars(panels[2], runs, "size_kb", "Compressed size (KB)", "{:.2f}")
    if (runs["mode"] == "uniform").any():
        improved = improvement_over_uniform(runs, "bound_value")
        _bars(panels[3], improved, "improvement_percent", "Bound below uniform's (%)", "{:+.1f}")
        panels[3].axhline(0.0, color=INK, linewidth=0.6)
    else:
        panels[3].set_axis_off()
        panels[3].text(0.5, 0.5, "no uniform arm in this grid", ha="center", transform=panels[3].transAxes)
    for axes, letter in zip(panels, "abcd", strict=True):
        axes.set_title(f"({letter})", loc="left")
    vacuous = mark_vacuous([panels[1]], runs["vacuous_bits"].iloc[0])
    add_legend(figure, [*(Patch(color=colour_of(arm), label=arm.label) for arm in arms_of(runs)), vacuous])
    return figure


@styled
def bound_decomposition(runs: pd.DataFrame, budget: int) -> Figure:
    """Stacked bars, a row an arm: loss before quantization, loss added by quantization, complexity term."""
    rows = with_decomposition(at_budget(runs, budget))
    arms = arms_of(rows)
    parts = [key for key, *_ in DECOMPOSITION]
    table = configurations(rows, [*parts, "bound_value"]).droplevel("budget")
    figure, (axes,) = panels_in(COLUMN_INCHES, 0.62 + 0.21 * len(arms))
    bar_style = {"height": 0.66, "edgecolor": "white", "linewidth": 0.0}
    for position, arm in enumerate(arms):
        point = table.loc[arm.allocation]
        left = 0.0
        for (_, _, colour, hatch), width in zip(DECOMPOSITION, _bar_widths(point), strict=True):
            axes.barh(position, width, left=left, color=colour, hatch=hatch, **bar_style)
            left += width
        spread = finite_or_none(point[("bound_value", "std")])
        axes.errorbar(left, position, xerr=spread, color=INK, elinewidth=0.8, linestyle="none")
        numbers = " + ".join(f"{point[(key, 'mean')]:.2f}" for key in parts).replace("+ -", "− ")
        axes.text(
            1.02, position, f"{numbers} = {left:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=5.8
        )
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set(xlabel="Loss and bound (bits/token)", xlim=(0.0, None), ylim=(len(arms) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    axes.set_title(f"d = {budget}", loc="left")
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.0, label=label)
        for _, label, colour, hatch in DECOMPOSITION
    ]
    add_legend(figure, [*handles, mark_vacuous([axes], rows["vacuous_bits"].iloc[0], along="x")])
    return figure


def _bar_widths(point: pd.Series) -> tuple[float, float, float]:
    """Widths that stack up to the bound. Where quantization lowers the loss, the first bar is the loss after it.

    Weights trained to be rounded are no model of their own before rounding, so the loss may fall.
    """
    before, added, complexity = (point[(key, "mean")] for key, *_ in DECOMPOSITION)
    return before + min(added, 0.0), max(added, 0.0), complexity


def with_decomposition(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with loss_before + loss_added + complexity = bound_value, in bits per token.

    What quantization adds is measured on the validation documents (same documents and smoothing before and
    after), since only the quantized model is scored on the m training documents.
    """
    added = runs["val_loss_bits"] - runs["val_loss_unquantized_bits"]
    return runs.assign(
        loss_before=runs["empirical_bpd"] - added,
        loss_added=added,
        complexity=runs["bound_value"] - runs["empirical_bpd"],
    )


def _bars(axes: Axes, runs: pd.DataFrame, column: str, label: str, number: str) -> None:
    table = configurations(runs, [column])[column]
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    width = 0.84 / len(arms)
    for rank, arm in enumerate(arms):
        values = table.xs(arm.allocation, level="allocation").loc[budgets]
        bars = axes.bar(
            [group + (rank - (len(arms) - 1) / 2) * width for group in range(len(budgets))],
            values["mean"],
            width=0.92 * width,
            color=colour_of(arm),
            yerr=None if values["std"].isna().any() else values["std"],
            error_kw={"ecolor": INK, "elinewidth": 0.7, "capsize": 1.4},
        )
        if len(table) <= MOST_LABELLED_BARS:
            texts = [number.format(mean).replace("-", "−") for mean in values["mean"]]
            axes.bar_label(bars, texts, padding=1.5, fontsize=5.5)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(budgets)), [f"d = {budget}" for budget in budgets])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(label)
