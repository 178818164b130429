"""Tables: the functions that the table of figures.smk names, their results as CSV and, where asked for, as LaTeX."""

import functools
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
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=True)
    read = functools.cache(lambda key: READERS[key](snakemake.input.get(key), runs))
    for file, function, *reads in map(str.split, snakemake.params.tables):
        module, _, name = function.rpartition(".")
        table_of = getattr(importlib.import_module(f"sublora.analysis.{module}"), name)
        table = table_of(runs, **{key: read(key) for key in reads})
        write_table_csv(table, snakemake.output.get(f"{file}_csv"))
        if snakemake.output.get(f"{file}_tex"):
            write_latex(table, snakemake.output.get(f"{file}_tex"))
