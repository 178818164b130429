"""Figures: the functions that the table of figures.smk names, each applied to the files that it reads."""

import functools
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
    budget = snakemake.wildcards.get("budget")
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=budget is None)
    read = functools.cache(lambda key: READERS[key](snakemake.input.get(key), runs))
    for function, *reads in map(str.split, snakemake.params.figures):
        module, _, name = function.rpartition(".")
        draw = getattr(importlib.import_module(f"sublora.analysis.{module}"), name)
        arguments = {key: read(key) for key in reads}
        # Functions that draw any number of budgets find the one of this figure in the runs.
        if "budget" in inspect.signature(draw).parameters:
            arguments["budget"] = int(budget)
        png, pdf = (snakemake.output.get(f"{name}_{suffix}") for suffix in ("png", "pdf"))
        save_figure(draw(runs, **arguments), png=png, pdf=pdf)
