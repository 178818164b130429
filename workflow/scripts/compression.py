"""Complexity and size against performance at one budget."""

from sublora.analysis.figures.tradeoff import compression
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save

with user_errors_to(snakemake.log[0]):
    figure = compression(read_runs_csv(snakemake.input.runs), int(snakemake.wildcards.budget))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
