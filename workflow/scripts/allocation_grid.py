"""The arms side by side, all budgets."""

from sublora.analysis.figures.allocation import allocation_grid
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save

with user_errors_to(snakemake.log[0]):
    figure = allocation_grid(read_runs_csv(snakemake.input.runs, whole_sweep=True))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
