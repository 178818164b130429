"""The trivial models, the frozen base and the best run in one table."""

from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.tables import write_csv
from sublora.analysis.yardsticks import load_yardsticks, yardstick_table

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs, whole_sweep=True)
    write_csv(yardstick_table(runs, load_yardsticks(snakemake.input.yardsticks, runs)), snakemake.output[0])
