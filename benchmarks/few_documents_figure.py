"""Figure and table of the study of few documents, from its rows.

    python -m benchmarks.few_documents_figure docs/studies/few_documents/runs.csv docs/images/few_documents

Writes the figure, .png and .pdf, and prints the table of the results page.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.few_documents import CELLS, OF_ALL_DOCUMENTS
from sublora.analysis.figures import style

PANELS = {"document": "(a) units: documents", "source": "(b) units: source files"}
LABELS = {"message": "message from all n, its d beside", "held out": "half of n held out, at most 1,000"}
LOOKS = {
    "message": {"color": style.CATEGORY_COLOURS[0], "marker": style.CATEGORY_MARKERS[0], "linestyle": "-"},
    "held out": {"color": style.CATEGORY_COLOURS[1], "marker": style.CATEGORY_MARKERS[1], "linestyle": "--"},
}
OTHER_D = {"color": style.FAINT, "marker": "x", "linestyle": "none", "markersize": 3.5}


def named_beforehand(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the d that the plan names for each cell, and those of what was held out."""
    named = {cell.name: cell.budgets[0] for cell in (*CELLS, OF_ALL_DOCUMENTS)}
    return rows[(rows["arm"] == "held out") | (rows["d"] == rows["cell"].map(named))]


@style.styled
def gain_against_n(rows: pd.DataFrame) -> Figure:
    """Certified gain over the frozen base against n, a panel for each unit: mean over seeds, and every seed."""
    figure, panels = style.panels_in(style.PAGE_INCHES, 2.5, columns=2, sharey=True)
    named = named_beforehand(rows)
    for axes, (unit, title) in zip(panels, PANELS.items(), strict=True):
        axes.axhline(0.0, color=style.INK, linewidth=0.9)
        for arm, look in LOOKS.items():
            found = named[(named["unit"] == unit) & (named["arm"] == arm)]
            means = found.groupby("n")["gain"].mean()
            axes.plot(means.index, means, **look, zorder=3)
            axes.plot(found["n"], found["gain"], **(look | {"linestyle": "none", "markersize": 2.2}), alpha=0.6)
            if arm == "message":
                _name_budgets(axes, found, means)
        others = rows[(rows["unit"] == unit) & ~rows.index.isin(named.index)]
        axes.plot(others["n"], others["gain"], **OTHER_D, zorder=2)
        _count_axis(axes, rows[rows["unit"] == unit])
        axes.set_title(title, loc="left")
    style.label_outer(panels, 2, x="n, documents or source files (log scale)", y="Certified gain (bits/byte)")
    handles = [Line2D([], [], **look, label=LABELS[arm]) for arm, look in LOOKS.items()]
    handles += [
        Line2D([], [], **OTHER_D, label="message, the other d"),
        Line2D([], [], color=style.INK, linewidth=0.9, label="frozen base"),
    ]
    style.add_legend(figure, handles)
    return figure


def _name_budgets(axes: Axes, found: pd.DataFrame, means: pd.Series) -> None:
    """Write the d of the message beside its mean at each n."""
    for n, d in found.groupby("n")["d"].first().items():
        place = {"xytext": (-2, 3), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(f"{d:,}", (n, means[n]), **place, fontsize=5.5, color=LOOKS["message"]["color"])


def _count_axis(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_xscale("log")
    axes.set_xlim(60.0, 120_000.0)
    axes.set_xticks(sorted(rows["n"].unique()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.tick_params(axis="x", labelrotation=30)


def table(rows: pd.DataFrame) -> str:
    """Return the table of the results page: means over seeds with the smallest and largest."""
    named = named_beforehand(rows)
    lines = [
        "| unit | n | d, C | message: certified gain | on test | held out: trained on, tested on | certified gain "
        "| on test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (_, n), found in named.groupby([named["unit"], "n"], sort=True):
        ways = {arm: found[found["arm"] == arm] for arm in LOOKS}
        message, held_out = ways["message"], ways["held out"]
        if message.empty or held_out.empty:
            continue
        first = held_out.iloc[0]
        lines.append(
            f"| {first['unit']} | {n:,} | {message['d'].iloc[0]:,}, {message['code_bits'].mean():,.0f} "
            f"| {_spread(message['gain'])} | {message['test_gain'].mean():.3f} "
            f"| {first['n_trained']:,}, {first['m']:,} | {_spread(held_out['gain'])} "
            f"| {held_out['test_gain'].mean():.3f} |"
        )
    return "\n".join(lines)


def _spread(values: pd.Series) -> str:
    """Return the mean over seeds, and the smallest and largest if there are several."""
    mean = f"{values.mean():.3f}"
    return mean if len(values) == 1 else f"{mean} ({values.min():.3f} to {values.max():.3f})"


def main() -> None:
    rows = pd.read_csv(sys.argv[1])
    target = Path(sys.argv[2])
    style.save_figure(gain_against_n(rows), png=target.with_suffix(".png"), pdf=target.with_suffix(".pdf"))
    print(table(rows))


if __name__ == "__main__":
    main()
