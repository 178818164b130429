"""One table: the function that the table of figures.smk names, its result as CSV and, where asked for, as LaTeX."""

import importlib

from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_latex, write_table_csv
from sublora.analysis.yardsticks import load_test_losses, load_yardsticks
from sublora.config import load_settings

READERS = {
    "yardsticks": lambda path, runs: load_yardsticks(path, runs, load_settings(snakemake.params.settings_file)),
    "test_losses_U": load_test_losses,
}
"""From the files of an argument, and the runs, to its value."""

with user_errors_to(snakemake.log[0]):
    module, _, name = snakemake.params.function.rpartition(".")
    table_of = getattr(importlib.import_module(f"sublora.analysis.{module}"), name)
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=True)
    arguments = {key: READERS[key](files, runs) for key, files in snakemake.input.items() if key in READERS}
    table = table_of(runs, **arguments)
    write_table_csv(table, snakemake.output.csv)
    if snakemake.output.get("tex"):
        write_latex(table, snakemake.output.tex)
