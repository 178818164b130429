"""bounds.json of every run -> one table."""

from pathlib import Path

from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.scripting import user_errors_to

with user_errors_to(snakemake.log[0]):
    write_runs_csv(collect_runs(snakemake.input.bounds), Path(snakemake.output[0]))
