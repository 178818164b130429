"""The arms side by side: their metrics, and what the bound is made of."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from sublora.analysis.arms import arms_of, configurations, improvement_over_uniform
from sublora.analysis.figures.reference_lines import bound_levels, mark_levels
from sublora.analysis.figures.style import (
    COLUMN_INCHES,
    INK,
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
from sublora.analysis.hypotheses import inference
from sublora.analysis.runs_table import at_budget, is_anchored
from sublora.analysis.yardsticks import Yardstick

MOST_LABELLED_POINTS = 10
"""More points than these in a panel leave no room for a number above each."""
GROUP_WIDTH = 0.84
"""Width that the arms of one budget take, as a share of the distance of two budgets."""
GRID_MEASURES = (
    ("empirical_bpd", "Empirical BPD (bits/token)"),
    ("bound_value", "Bound (bits/token)"),
    ("size_per_dimension", "Compressed size (bits per dimension)"),
)
DECOMPOSITION = (
    ("loss_before", "Loss", "#9ecae1", ""),
    ("loss_added", "Added by quantization", "#a63603", ""),
    ("complexity", "Complexity", "#756bb1", "////"),
)
ANCHORED_DECOMPOSITION = (
    ("anchor_excess", "Change by adapting", "#74c476", ""),
    ("base_margin", "Base: draw, confidence", "#9ecae1", ""),
    ("excess_margin", "Adapting: message, draw, confidence", "#756bb1", "////"),
)
BAR_HEIGHT = 0.62
BEFORE_QUANTIZATION: dict[str, Any] = {
    "color": "#a63603",
    "marker": "v",
    "markersize": 3.0,
    "markeredgewidth": 0.0,
    "linestyle": "none",
}


@styled
def allocation_grid(runs: pd.DataFrame) -> Figure:
    """2 x 2 panels of points, one group per budget, one point per arm: BPD, bound, size, improvement over uniform.

    The axes do not begin at 0, since the arms differ by little. Whiskers: one standard deviation over seeds; of the
    improvement, which is paired by seed, the 95 % interval of its mean.
    """
    runs = runs.assign(size_per_dimension=runs["compressed_size_bits"] / runs["budget"])
    figure, panels = panels_in(PAGE_INCHES, 4.0, rows=2, columns=2)
    for axes, (column, label) in zip(panels, GRID_MEASURES, strict=False):
        _points_by_budget(axes, runs, column, label, "{:.3f}")
    is_uniform = runs["mode"] == "uniform"
    if is_uniform.any() and not is_uniform.all():
        improved = improvement_over_uniform(runs, "bound_value")
        _points_by_budget(
            panels[3], improved, "improvement_percent", "Bound below uniform's (%)", "{:+.2f}", of_mean=True
        )
        panels[3].axhline(0.0, color=INK, linewidth=0.6)
    else:
        panels[3].set_axis_off()
        missing = "arm beside uniform" if is_uniform.any() else "uniform arm"
        panels[3].text(0.5, 0.5, f"no {missing} in this grid", ha="center", transform=panels[3].transAxes)
    for axes, letter in zip(panels, "abcd", strict=True):
        axes.set_title(f"({letter})", loc="left")
    vacuous = mark_vacuous([panels[1]], runs["vacuous_bits"].iloc[0])
    add_legend(figure, [*arm_handles(arms_of(runs)), vacuous])
    return figure


@styled
def bound_decomposition(runs: pd.DataFrame, budget: int, yardsticks: Sequence[Yardstick]) -> Figure:
    """Stacked bars, one row per arm: loss, loss added by quantization, complexity term; lines at yardsticks' bounds.

    Weights trained to be rounded are no model of their own before rounding, so quantization may lower their loss: the
    first bar is then the loss after it, and a mark above the bar stands at the loss before.

    Of an anchored bound the parts are other ones: see `_anchored_decomposition`.
    """
    if is_anchored(runs):
        return _anchored_decomposition(at_budget(runs, budget), budget, yardsticks)
    rows = with_decomposition(at_budget(runs, budget))
    arms = arms_of(rows)
    parts = [key for key, *_ in DECOMPOSITION]
    table = configurations(rows, [*parts, "bound_value"]).droplevel("budget")
    figure, (axes,) = panels_in(COLUMN_INCHES, 0.62 + 0.21 * len(arms))
    for position, arm in enumerate(arms):
        point = table.loc[arm.allocation]
        before, added, complexity = (point[(key, "mean")] for key in parts)
        left = 0.0
        widths = before + min(added, 0.0), max(added, 0.0), complexity
        for (_, _, colour, hatch), width in zip(DECOMPOSITION, widths, strict=True):
            axes.barh(position, width, BAR_HEIGHT, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.0)
            left += width
        if added < 0.0:
            axes.plot(before, position - BAR_HEIGHT / 2, **BEFORE_QUANTIZATION)
        spread = finite_or_none(point[("bound_value", "std")])
        axes.errorbar(left, position, xerr=spread, color=INK, elinewidth=0.8, linestyle="none")
        _print_sum(axes, position, sum_of([before, added, complexity], left))
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set(xlabel="Loss and bound (bits/token)", xlim=(0.0, None), ylim=(len(arms) - 0.5, -0.6))
    axes.grid(axis="y", visible=False)
    axes.set_title(f"d = {budget}", loc="left")
    mark_levels(axes, bound_levels(yardsticks), along="x")
    add_legend(figure, _decomposition_handles(table.loc[[arm.allocation for arm in arms]]))
    return figure


def _anchored_decomposition(runs: pd.DataFrame, budget: int, yardsticks: Sequence[Yardstick]) -> Figure:
    """Steps from the base's loss to the bound, one row per arm: the mean excess, then what each of the two bounds adds.

    The upper lane of a row leads from the base's loss, marked by a stroke, to the loss after adapting; the lower lane
    from there to the bound. All steps are short against the losses, so the axis does not begin at 0.
    """
    rows = with_anchored_decomposition(runs)
    arms = arms_of(rows)
    parts = [key for key, *_ in ANCHORED_DECOMPOSITION]
    table = configurations(rows, ["anchor_base_loss", *parts, "bound_value"]).droplevel("budget")
    figure, (axes,) = panels_in(COLUMN_INCHES, 0.62 + 0.27 * len(arms))
    lane = BAR_HEIGHT / 2
    for position, arm in enumerate(arms):
        point = table.loc[arm.allocation]
        place = base_loss = point[("anchor_base_loss", "mean")]
        axes.plot([base_loss] * 2, [position - lane, position], color=INK, linewidth=1.1, solid_capstyle="butt")
        for (key, _, colour, hatch), offset in zip(ANCHORED_DECOMPOSITION, (-lane, 0.0, 0.0), strict=True):
            width = point[(key, "mean")]
            start, y = min(place, place + width), position + offset + lane / 2
            axes.barh(y, abs(width), lane, start, color=colour, hatch=hatch, edgecolor="white", linewidth=0.0)
            place += width
        spread = finite_or_none(point[("bound_value", "std")])
        axes.errorbar(place, position + lane / 2, xerr=spread, color=INK, elinewidth=0.8, linestyle="none")
        _print_sum(axes, position, sum_of([base_loss, *(point[(key, "mean")] for key in parts)], place))
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set(xlabel="Loss and bound (bits/token)", ylim=(len(arms) - 0.5, -0.6))
    axes.use_sticky_edges = False  # bars end within the axis
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"d = {budget}", loc="left")
    mark_levels(axes, bound_levels(yardsticks), along="x")
    add_legend(
        figure,
        [
            Line2D([], [], color=INK, marker="|", markersize=6.0, linestyle="none", label="Loss of the base"),
            *(
                Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.0, label=label)
                for _, label, colour, hatch in ANCHORED_DECOMPOSITION
            ),
        ],
    )
    return figure


def with_anchored_decomposition(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with anchor_base_loss + anchor_excess + base_margin + excess_margin = bound_value, in bits per token."""
    return runs.assign(
        base_margin=runs["anchor_base_bound"] - runs["anchor_base_loss"],
        excess_margin=runs["anchor_excess_bound"] - runs["anchor_excess"],
    )


def _print_sum(axes: Axes, position: int, text: str) -> None:
    """Right of the panel, beside a row."""
    axes.text(1.02, position, text, transform=axes.get_yaxis_transform(), va="center", fontsize=5.8)


def _decomposition_handles(table: pd.DataFrame) -> list[Patch | Line2D]:
    """Legend entries of what is drawn: quantization adds to the loss, or the loss before it is marked."""
    added = table[("loss_added", "mean")]
    drawn = {"loss_before": True, "loss_added": (added >= 0.0).any(), "complexity": True}
    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.0, label=label)
        for key, label, colour, hatch in DECOMPOSITION
        if drawn[key]
    ]
    if (added < 0.0).any():
        handles.append(Line2D([], [], label="Before quantization", **BEFORE_QUANTIZATION))
    return handles


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


def _points_by_budget(
    axes: Axes, runs: pd.DataFrame, column: str, label: str, number: str, *, of_mean: bool = False
) -> None:
    """Means of the arms side by side at each budget; of_mean: whiskers are the 95 % interval of the mean."""
    arms, budgets = arms_of(runs), sorted(runs["budget"].unique())
    values = runs.groupby(["budget", "allocation"])[column]
    labelled = len(arms) * len(budgets) <= MOST_LABELLED_POINTS
    for group, budget in enumerate(budgets):
        for rank, arm in enumerate(arms):
            place = group + (rank - (len(arms) - 1) / 2) * GROUP_WIDTH / len(arms)
            seeds = values.get_group((budget, arm.allocation)).to_numpy()
            mean, (low, high) = float(seeds.mean()), (inference.t_interval if of_mean else spread_of)(seeds)
            has_whisker = not math.isnan(low)
            axes.errorbar(
                place,
                mean,
                yerr=[[mean - low], [high - mean]] if has_whisker else None,
                color=colour_of(arm),
                marker=marker_of(arm, arms_of(runs)),
                elinewidth=0.8,
                linestyle="none",
            )
            if labelled:
                _print_above(axes, (place, high if has_whisker else mean), rounded(mean, number))
    axes.margins(y=0.12)
    axes.set_xlim(-0.5, len(budgets) - 0.5)
    axes.set_xticks(range(len(budgets)), [f"d = {budget}" for budget in budgets])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(label)


def _print_above(axes: Axes, point: tuple[float, float], text: str) -> None:
    """With a white rim, so that it can be read where it stands on a line."""
    label = axes.annotate(text, point, (0.0, 3.0), textcoords="offset points", ha="center", va="bottom", fontsize=5.5)
    label.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def spread_of(values: np.ndarray) -> tuple[float, float]:
    """One standard deviation to either side of the mean; (nan, nan) for a single value."""
    if len(values) < 2:
        return math.nan, math.nan
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return mean - std, mean + std


def rounded(value: float, number: str) -> str:
    """The number as text, with a minus sign in place of a hyphen, and none before what rounds to zero."""
    text = number.format(value)
    if float(text) == 0.0:
        text = number.format(0.0).removeprefix("+")
    return text.replace("-", "\N{MINUS SIGN}")


def sum_of(parts: Sequence[float], total: float) -> str:
    """a + b - c = total, as the figures print what a bound consists of."""
    first, *others = (rounded(part, "{:.3f}") for part in parts)
    terms = [f" \N{MINUS SIGN} {text[1:]}" if text.startswith("\N{MINUS SIGN}") else f" + {text}" for text in others]
    return f"{first}{''.join(terms)} = {rounded(total, '{:.3f}')}"
