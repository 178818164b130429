"""Write the table of the demo's runs into docs/studies/demo.md: `python docs/update_bounds_table.py [runs.csv]`."""

import sys
from pathlib import Path

import pandas as pd

from sublora.analysis.runs_table import read_runs_csv
from sublora.system.files import write_bytes

DOCUMENT = Path(__file__).parent / "studies" / "demo.md"
RUNS = Path(__file__).parents[1] / "demo" / "results" / "runs.csv"
BEGIN, END = "<!-- demo-table:begin -->\n", "<!-- demo-table:end -->"
PAPER, DIRECT, HEADLINE = "paper's", "direct", "**bound**"
COLUMNS = {
    "run": "name",
    "smoothing": "smoothing",
    "loss": "empirical_bpd",
    "C (bits)": "code_bits",
    PAPER: "bound_hoeffding",
    DIRECT: "bound_direct",
    HEADLINE: "bound_value",
    "held out": "bound_held_out",
    "all runs at once": "bound_all_runs",
    "settings charged too": "bound_strict",
    "certified gain": "certified_gain_all_runs_bits",
    "by source file": "by_source_bound",
}
"""Header and column of runs.csv; losses and bounds in bits per token."""


def table(runs: pd.DataFrame) -> str:
    """Markdown: one row per run, then how the gaps compare."""
    columns = {header: column for header, column in COLUMNS.items() if column in runs}
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for _, run in runs.iterrows():
        lines.append("| " + " | ".join(_cell(run[column]) for column in columns.values()) + " |")
    gaps = {name: runs[COLUMNS[name]] - runs["empirical_bpd"] for name in (PAPER, DIRECT, HEADLINE)}
    ratio = gaps[PAPER] / gaps[HEADLINE]
    lines += [
        "",
        f"n = {runs['n_units'].iloc[0]:,} documents, m = {runs['m_units'].iloc[0]:,} drawn, "
        f"delta = {runs['delta'].iloc[0]:g}, vacuous at {runs['vacuous_bits'].iloc[0]:.3f} bits per token. "
        f"Gap between bound and loss: {gaps[HEADLINE].median():.3f} bits in the median with the anchor, "
        f"{gaps[DIRECT].median():.3f} by betting without it, {gaps[PAPER].median():.3f} by the paper's inequality, "
        f"{ratio.min():.1f} to {ratio.max():.1f} times as much as with the anchor.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    return f"{number:,.0f}" if number > 100 else f"{number:.3f}"


def main() -> None:
    runs = read_runs_csv(Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    write_bytes(DOCUMENT, (before + BEGIN + table(runs) + END + after).encode())


if __name__ == "__main__":
    main()
