"""The tested hypotheses."""

from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_csv

with user_errors_to(snakemake.log[0]):
    write_csv(hypothesis_table(read_runs_csv(snakemake.input.runs, whole_sweep=True)), snakemake.output[0])
