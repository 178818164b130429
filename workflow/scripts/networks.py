"""What is trained, or networks of several sizes, side by side."""

from sublora.analysis.networks import network_table
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_csv

with user_errors_to(snakemake.log[0]):
    write_csv(network_table(read_runs_csv(snakemake.input.runs)), snakemake.output.csv)
