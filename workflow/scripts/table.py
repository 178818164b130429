"""One table: the function that the table of figures.smk names, its result as CSV and, where asked for, as LaTeX."""

import importlib

from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_latex, write_table_csv
from sublora.analysis.yardsticks import load_yardsticks

with user_errors_to(snakemake.log[0]):
    module, _, name = snakemake.params.function.rpartition(".")
    table_of = getattr(importlib.import_module(f"sublora.analysis.{module}"), name)
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=True)
    yardsticks = snakemake.input.get("yardsticks")
    table = table_of(runs) if yardsticks is None else table_of(runs, load_yardsticks(yardsticks, runs))
    write_table_csv(table, snakemake.output.csv)
    if snakemake.output.get("tex"):
        write_latex(table, snakemake.output.tex)
