"""One look for every figure: colours, markers and order of the arms, sizes, and files that are equal for equal data."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sublora import config
from sublora.analysis.arms import Arm
from sublora.system.files import atomic_path

COLUMN_INCHES = 3.3
"""Width of a figure that fills one column of a two-column page."""
PAGE_INCHES = 6.9
"""Width of a figure across both columns."""
PNG_DPI = 300

INK = "#222222"
FAINT = "#767676"
# By the rank of an allocation's kind: colour and marker of an arm without a ratio, and the colour map of ratios.
KIND_COLOURS = ("#303030", "#cc79a7", "#56b4e9", "#009e73", "#a6761d", "#0072b2")
KIND_MARKERS = ("o", "*", "D", "p", "8", "H")
KIND_COLOUR_MAPS = ("cividis", "plasma", "viridis", "summer", "winter", "copper")
RATIO_MARKERS = ("v", "s", "^", "<", ">", "P", "X", "h", "d")
# colour-blind-safe categorical colours of Okabe and Ito, for what is neither an arm nor ordered
CATEGORY_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
CATEGORY_MARKERS = ("o", "s", "D", "^", "v", "P")

RC = {
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.0,
    "axes.titlepad": 4.0,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "errorbar.capsize": 1.8,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
}

Parameters = ParamSpec("Parameters")


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw with this style whatever the user's own matplotlib settings are."""

    @functools.wraps(draw)
    def drawing(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            return draw(*args, **kwargs)

    return drawing


def save_figure(figure: Figure, *, png: Path | str, pdf: Path | str) -> None:
    """Write both files without dates or program versions: the same data gives the same bytes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        with atomic_path(Path(png)) as temporary:
            figure.savefig(temporary, format="png", dpi=PNG_DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # the PNG's layout serves for both, and takes time to find
        with atomic_path(Path(pdf)) as temporary:
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def colour_of(arm: Arm) -> str:
    """Fixed splits run from dark violet (all to A) to yellow (all to B), the same ratio alike in every grid."""
    rank = config.allocation_modes().index(arm.mode)
    if arm.ratio is None:
        return KIND_COLOURS[rank % len(KIND_COLOURS)]
    colours = KIND_COLOUR_MAPS[rank % len(KIND_COLOUR_MAPS)]
    return to_hex(matplotlib.colormaps[colours](0.1 + 0.85 * arm.ratio))


def marker_of(arm: Arm, arms: Sequence[Arm]) -> str:
    """A second code beside colour, for print without colour."""
    if arm.ratio is None:
        return KIND_MARKERS[config.allocation_modes().index(arm.mode) % len(KIND_MARKERS)]
    rank = [other.allocation for other in arms if other.ratio is not None].index(arm.allocation)
    return RATIO_MARKERS[rank % len(RATIO_MARKERS)]


def ordered_colours(count: int) -> list[str]:
    """Colours for ordered things that are no arms (layers, budgets), dark to light."""
    step = 0.82 / max(1, count - 1)
    return [to_hex(matplotlib.colormaps["viridis"](0.03 + index * step)) for index in range(count)]


def arm_handles(arms: Sequence[Arm], *, line: bool = False) -> list[Line2D]:
    """Legend entries of the arms, in their order."""
    style = "-" if line else "none"
    return [
        Line2D([], [], color=colour_of(arm), marker=marker_of(arm, arms), linestyle=style, label=arm.label)
        for arm in arms
    ]


def panels_in(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of the given size in inches with rows x columns panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # legends are measured before anything is saved
    return figure, list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)


def wrapped(count: int, most_in_a_row: int) -> tuple[int, int]:
    """(rows, columns) for `count` panels, the rows as even as can be."""
    rows = -(-count // most_in_a_row)
    return rows, -(-count // rows)


def label_outer(panels: Sequence[Axes], columns: int, *, x: str, y: str) -> None:
    """Name the axes of a block of panels once: x where nothing visible lies below, y in the first column."""
    for index, axes in enumerate(panels):
        below = panels[index + columns] if index + columns < len(panels) else None
        if below is None or not below.get_visible():
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(x)
        if index % columns == 0:
            axes.set_ylabel(y)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below all panels, in as many columns as fit; the figure grows by its height."""
    width, height = figure.get_size_inches()
    for wanted in range(len(handles), 0, -1):
        _, columns = wrapped(len(handles), wanted)
        legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or wanted == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + extent.height / figure.dpi)


def mark_vacuous(panels: Sequence[Axes], bits: float, *, along: str = "y", limit: float = 1.7) -> Line2D:
    """A dotted line at the loss of the uniform prediction in every panel where it does not squash the data.

    Returns the legend entry, which names the value and says so if no panel shows the line. `limit`: how many
    times its present extent an axis may grow to.
    """
    drawn = False
    for axes in panels:
        low, high = axes.get_ylim() if along == "y" else axes.get_xlim()
        if max(high, bits) - min(low, bits) > limit * (high - low):
            continue
        draw, set_limits = (axes.axhline, axes.set_ylim) if along == "y" else (axes.axvline, axes.set_xlim)
        draw(bits, color=FAINT, linestyle=":", linewidth=1.0, zorder=1)
        margin = 0.05 * (high - low)
        set_limits(low if low <= bits else bits - margin, high if bits <= high else bits + margin)
        drawn = True
    text = f"Vacuous: {bits:.2f}" + ("" if drawn else " (off scale)")
    return Line2D([], [], color=FAINT, linestyle=":" if drawn else "none", linewidth=1.0, label=text)


def finite_or_none(value: float) -> float | None:
    """An error bar's length: none where one seed gives no spread."""
    return None if math.isnan(value) else float(value)
