"""One figure: the function that the table of figures.smk names, applied to the files that it reads."""

import importlib
import inspect

from sublora.analysis.figures.style import save_figure
from sublora.analysis.histories import read_gating_traces, read_metrics
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.yardsticks import load_yardsticks
from sublora.config import load_settings

READERS = {
    "yardsticks": lambda path, runs: load_yardsticks(path, runs, load_settings(snakemake.params.settings_file)),
    "metrics": lambda paths, runs: read_metrics(paths, runs, steps=snakemake.params.steps),
    "traces": lambda paths, runs: read_gating_traces(paths, runs, steps=snakemake.params.steps),
}
"""From the files of an argument, and the runs, to its value."""

with user_errors_to(snakemake.log[0]):
    module, _, name = snakemake.params.function.rpartition(".")
    draw = getattr(importlib.import_module(f"sublora.analysis.{module}"), name)
    budget = snakemake.wildcards.get("budget")
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=budget is None)
    arguments = {key: READERS[key](files, runs) for key, files in snakemake.input.items() if key in READERS}
    # Functions that draw any number of budgets find the one of this figure in the runs.
    if "budget" in inspect.signature(draw).parameters:
        arguments["budget"] = int(budget)
    save_figure(draw(runs, **arguments), png=snakemake.output.png, pdf=snakemake.output.pdf)
