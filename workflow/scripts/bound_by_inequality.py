"""The bound by every inequality."""

from sublora.analysis.figures.bounds import bound_by_inequality
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save

with user_errors_to(snakemake.log[0]):
    figure = bound_by_inequality(read_runs_csv(snakemake.input.runs))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
