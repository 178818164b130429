"""What the bound consists of at one budget."""

from sublora.analysis.figures.allocation import bound_decomposition
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save
from sublora.analysis.yardsticks import load_yardsticks

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs)
    budget = int(snakemake.wildcards.budget)
    figure = bound_decomposition(runs, budget, load_yardsticks(snakemake.input.yardsticks, runs))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
