"""The bound against the size of the message, by what is trained, and against the size of the network."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sublora.analysis.arms import BITS_PER_KILOBYTE, arms_of
from sublora.analysis.figures.reference_lines import bound_levels, mark_levels
from sublora.analysis.figures.style import (
    CATEGORY_COLOURS,
    CATEGORY_MARKERS,
    COLUMN_INCHES,
    INK,
    add_legend,
    finite_or_none,
    panels_in,
    styled,
)
from sublora.analysis.figures.tradeoff import log_axis
from sublora.analysis.runs_table import MODEL_PARAMETERS
from sublora.analysis.tables import network_table
from sublora.analysis.yardsticks import Yardstick
from sublora.system.errors import UserError

PART_LABELS = {"lora": "LoRA", "weights": "All weights", "vectors": "Gains and biases", "cores": "LoRA-XS cores"}
WHOLE = "identity"
DRAWN_MEASURES = (("bound_value", True), ("empirical_bpd", False))
"""Column, and whether its markers are filled."""
CLOSE_SHARE = 0.22
"""Share of the axis: the labels of sizes closer than that would touch."""


@styled
def bound_against_compressed_size(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> Figure:
    """The bound and the empirical BPD against the compressed size: a colour for each of what is trained.

    Mean and std over seeds; of several budgets, allocations or sizes a point each, joined. Lines at the yardsticks'
    bounds. UserError if the grid does not compare what is trained.
    """
    _require(runs, "trained", "grid.trained")
    table = network_table(runs)
    parts = list(dict.fromkeys(table["trained"]))
    figure, (axes,) = panels_in(COLUMN_INCHES, 2.4)
    handles = []
    for rank, part in enumerate(parts):
        rows = table[table["trained"] == part].sort_values("compressed_size_bits")
        colour, marker = _code(rank)
        x = rows["compressed_size_bits"] / BITS_PER_KILOBYTE
        for column, filled in DRAWN_MEASURES:
            _points(axes, x, rows, column, colour, marker, filled=filled)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=part_label(part)))
    axes.margins(x=0.1)
    log_axis(axes)
    axes.set(xlabel="Compressed size (KB, log scale)", ylabel="Bound and BPD (bits/token)")
    mark_levels(axes, bound_levels(yardsticks))
    add_legend(figure, [*handles, *_measure_handles()])
    return figure


@styled
def bound_against_model_size(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> Figure:
    """The bound and the empirical BPD against the number of the network's weights.

    A colour for each of what is trained, or else for each budget and allocation; mean and std over seeds. Lines at the
    yardsticks' bounds. UserError if the grid does not compare sizes.
    """
    _require(runs, MODEL_PARAMETERS, "grid.sizes")
    table = network_table(runs)
    labels = _labels(runs, table)
    figure, (axes,) = panels_in(COLUMN_INCHES, 2.4)
    axes.set_xscale("log")
    handles = []
    for rank, label in enumerate(dict.fromkeys(labels)):
        rows = table[labels == label].sort_values(MODEL_PARAMETERS)
        colour, marker = _code(rank)
        for column, filled in DRAWN_MEASURES:
            _points(axes, rows[MODEL_PARAMETERS], rows, column, colour, marker, filled=filled)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=label))
    sizes = table.drop_duplicates("size").sort_values(MODEL_PARAMETERS)
    axes.set_xticks(sizes[MODEL_PARAMETERS], size_labels(_pairs(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) == 1:
        only = sizes[MODEL_PARAMETERS].iloc[0]
        axes.set_xlim(only / 1.5, only * 1.5)
    axes.set(xlabel="Weights of the network (log scale)", ylabel="Bound and BPD (bits/token)")
    mark_levels(axes, bound_levels(yardsticks))
    add_legend(figure, [*handles, *_measure_handles()])
    return figure


def part_label(trained: str) -> str:
    """What is trained, in words."""
    adapt, _, projection = trained.partition("-")
    label = PART_LABELS[adapt]
    if projection == WHOLE:
        return label
    return f"Subspace of {label if adapt == 'lora' else label.lower()}"


def size_labels(sizes: Sequence[tuple[str, int]]) -> list[str]:
    """Name and number of weights below each other; every second label lower where neighbours would touch.

    sizes: (name, weights), ascending.
    """
    places = np.log([weights for _, weights in sizes])
    close = len(sizes) > 1 and np.diff(places).min() < CLOSE_SHARE * (places[-1] - places[0])
    lower = ["", "\n\n" if close else ""]
    return [f"{lower[i % 2]}{name}\n{_count(weights)}" for i, (name, weights) in enumerate(sizes)]


def _labels(runs: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """What the points of a line have in common, in words."""
    arms = {arm.allocation: arm.label for arm in arms_of(runs)}
    texts = table["allocation"].map(arms)
    several = table["budget"].nunique() > 1
    if "trained" in table:
        texts = table["trained"].map(part_label)
        several = False
    return texts + table["budget"].map(", d = {:,}".format) if several else texts


def _pairs(sizes: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(sizes["size"], sizes[MODEL_PARAMETERS], strict=True))


def _count(number: float) -> str:
    """124M, 54k."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.0f}"


def _code(rank: int) -> tuple[str, str]:
    return CATEGORY_COLOURS[rank % len(CATEGORY_COLOURS)], CATEGORY_MARKERS[rank % len(CATEGORY_MARKERS)]


def _points(
    axes: Axes, x: pd.Series, rows: pd.DataFrame, column: str, colour: str, marker: str, *, filled: bool
) -> None:
    deviations = rows[f"{column}_std"]
    axes.errorbar(
        x,
        rows[column],
        yerr=None if finite_or_none(deviations.sum(skipna=False)) is None else deviations,
        color=colour,
        marker=marker,
        markersize=5.0,
        markerfacecolor=colour if filled else "white",
        markeredgewidth=0.8,
        linewidth=0.7,
        linestyle="-" if filled else "--",
        elinewidth=0.8,
        zorder=3,
    )


def _measure_handles() -> list[Line2D]:
    labels = {"bound_value": "Bound", "empirical_bpd": "Empirical BPD"}
    return [
        Line2D(
            [],
            [],
            color=INK,
            marker="o",
            markerfacecolor=INK if filled else "white",
            linestyle="-" if filled else "--",
            linewidth=0.7,
            label=labels[column],
        )
        for column, filled in DRAWN_MEASURES
    ]


def _require(runs: pd.DataFrame, column: str, key: str) -> None:
    """UserError if the grid does not compare what a figure shows."""
    if column not in runs:
        raise UserError(f"the runs table has no column {column}; set {key}, and run what it adds")
