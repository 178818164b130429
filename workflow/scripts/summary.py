"""The table of all configurations, as CSV and for LaTeX."""

from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_summary

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=True)
    write_summary(runs, csv=snakemake.output.csv, tex=snakemake.output.tex)
