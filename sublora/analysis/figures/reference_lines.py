"""Thin lines across a figure at known losses or bounds, each named at the end of its line."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation, Transform

from sublora.analysis.figures.style import FAINT
from sublora.analysis.yardsticks import Yardstick
from sublora.yardsticks.record import BIGRAM, FROZEN_BASE, GUESSING, ORDER3, UNIGRAM

LINE_LABELS = {GUESSING: "Vacuous", UNIGRAM: "Unigram", BIGRAM: "Bigram", ORDER3: "Order 3", FROZEN_BASE: "Frozen base"}
LABEL_POINTS = 5.8
LABEL_DISTANCE_POINTS = 8.0
"""From the end of a line to its label: room for a connector where the label stands elsewhere."""
NAME_DISTANCE_POINTS = 5.0
"""The same for a name at the end of a data line, which is shorter."""
LINE_SPACING = 1.35
"""Distance of neighbouring labels, as a multiple of their size."""
MARGIN = 0.05
"""Room beyond a line that lies outside the data, as a share of the axis."""


@dataclasses.dataclass(frozen=True)
class Level:
    """A loss or a bound to compare with, in bits per token."""

    label: str
    bits: float
    dotted: bool = False


def bound_levels(yardsticks: Sequence[Yardstick]) -> list[Level]:
    """Their bounds, as lines of a figure whose axis is a bound."""
    return [_level(yardstick, yardstick.bound_bits) for yardstick in yardsticks]


def loss_levels(yardsticks: Sequence[Yardstick]) -> list[Level]:
    """Their losses on the training documents that are scored, as lines of a figure whose axis is such a loss."""
    return [_level(yardstick, yardstick.scored_loss_bits) for yardstick in yardsticks]


def _level(yardstick: Yardstick, bits: float) -> Level:
    return Level(LINE_LABELS[yardstick.name], bits, dotted=yardstick.name == GUESSING)


def mark_levels(axes: Axes, levels: Sequence[Level], *, along: Literal["x", "y"] = "y", limit: float = 2.2) -> None:
    """A line at each level that does not squash the data, named and numbered where it ends; an arrow to the others.

    Call it when the axes have their labels and limits, and before the legend. `along`: the axis of the bits. Labels
    stand at the right of a y axis; above an x axis they stand upright, and the figure grows by their length. `limit`:
    how many times its present extent the axis may grow to; nearer levels come first.
    """
    shown = _widen(axes, levels, along, limit)
    draw = axes.axhline if along == "y" else axes.axvline
    for level in shown:
        draw(level.bits, color=FAINT, linestyle=":" if level.dotted else "-", linewidth=0.7, zorder=1.5)
    low, high = axes.get_ylim() if along == "y" else axes.get_xlim()
    ordered = sorted(levels, key=lambda level: level.bits)
    ends = [min(max((level.bits - low) / (high - low), 0.0), 1.0) for level in ordered]
    step = LABEL_DISTANCE_POINTS / 72.0
    shift = (step, 0.0) if along == "y" else (0.0, step)
    beside = axes.transAxes + ScaledTranslation(*shift, axes.figure.dpi_scale_trans)
    style = {"va": "center", "ha": "left"} if along == "y" else {"va": "bottom", "ha": "center", "rotation": 90.0}
    texts = []
    for level, end, place in zip(ordered, ends, _places(axes, ends, along), strict=True):
        at, line_end = ((1.0, place), (1.0, end)) if along == "y" else ((place, 1.0), (end, 1.0))
        text = f"{level.label} {level.bits:.2f}"
        if level in shown:
            _connect(axes, line_end, at, beside)
        else:
            text += _arrow(beyond=end == 1.0, along=along)
        texts.append(axes.text(*at, text, transform=beside, fontsize=LABEL_POINTS, color=FAINT, **style))
    if along == "x" and texts:
        figure = _figure_of(axes)
        width, height = figure.get_size_inches()
        longest = max(text.get_window_extent().height for text in texts)
        figure.set_size_inches(width, height + longest / figure.dpi)


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names of lines that reach the right end of the axes, beside it: (name, the line's last value, its colour).

    Call it when the figure has been drawn once, so that the height of the axes is known.
    """
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[1])
    targets = [(value - low) / (high - low) for _, value, _ in ordered]
    beside = axes.transAxes + ScaledTranslation(NAME_DISTANCE_POINTS / 72.0, 0.0, axes.figure.dpi_scale_trans)
    size = _share_of_axes(axes, "y")
    places = spread(targets, LINE_SPACING * size, size / 2, 1.0 - size / 2)
    for (name, _, colour), target, place in zip(ordered, targets, places, strict=True):
        _connect(axes, (1.0, target), (1.0, place), beside, colour)
        axes.text(1.0, place, name, transform=beside, fontsize=LABEL_POINTS, va="center", ha="left")


def _widen(axes: Axes, levels: Sequence[Level], along: str, limit: float) -> list[Level]:
    """Grow the axis, nearest level first, while it stays within the limit; returns the levels it then shows."""
    low, high = axes.get_ylim() if along == "y" else axes.get_xlim()
    largest, margin, shown = limit * (high - low), MARGIN * (high - low), []
    for level in sorted(levels, key=lambda level: max(low - level.bits, level.bits - high)):
        new_low = low if low <= level.bits else level.bits - margin
        new_high = high if level.bits <= high else level.bits + margin
        if new_high - new_low <= largest:
            low, high = new_low, new_high
            shown.append(level)
    (axes.set_ylim if along == "y" else axes.set_xlim)(low, high)
    return shown


def _arrow(*, beyond: bool, along: str) -> str:
    """Towards a level that the axis does not reach; above an x axis it is turned with the text."""
    up = beyond if along == "y" else not beyond
    return " \N{UPWARDS ARROW}" if up else " \N{DOWNWARDS ARROW}"


def _connect(
    axes: Axes, line_end: tuple[float, float], label: tuple[float, float], beside: Transform, colour: str = FAINT
) -> None:
    """From the end of a line to its label, which may stand a little off; both in shares of the axes."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1.0, "shrinkB": 0.0}
    axes.annotate("", line_end, label, "axes fraction", beside, arrowprops=line, annotation_clip=False)


def _places(axes: Axes, ends: Sequence[float], along: str) -> list[float]:
    """Where the labels of lines with these ends stand, both as shares of the axis, ascending."""
    _figure_of(axes).draw_without_rendering()
    size = _share_of_axes(axes, along)
    lowest = size / 2
    if along == "x":
        box = axes.get_window_extent()
        lowest += max(0.0, (_right_end_of_title(axes) - box.x0) / box.width)
    return spread(ends, LINE_SPACING * size, lowest, 1.0 - size / 2)


def _share_of_axes(axes: Axes, along: str) -> float:
    """Height of a label as a share of the axes' length, as they were last drawn."""
    box = axes.get_window_extent()
    length = box.height if along == "y" else box.width
    return LABEL_POINTS / 72.0 * _figure_of(axes).dpi / float(length)


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    return figure


def _right_end_of_title(axes: Axes) -> float:
    """Return where the left title ends, in pixels: labels above an x axis begin beyond it."""
    title = axes.get_title(loc="left")
    return max(
        (text.get_window_extent().x1 for text in axes.findobj(Text) if title and text.get_text() == title), default=0.0
    )


def spread(targets: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places as near to ascending targets as can be without one being closer than `distance` to the one before.

    All lie in [low, high] where there is room for them; otherwise they begin at `low`.
    """
    places: list[float] = []
    for rank, target in enumerate(targets):
        least = places[-1] + distance if places else low
        most = high - distance * (len(targets) - 1 - rank)
        places.append(max(least, min(target, most)))
    return places
