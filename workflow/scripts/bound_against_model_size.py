"""The bound against the size of the network."""

from sublora.analysis.figures.networks import bound_against_model_size
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save
from sublora.analysis.yardsticks import load_yardsticks

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs)
    figure = bound_against_model_size(runs, load_yardsticks(snakemake.input.yardsticks, runs))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
