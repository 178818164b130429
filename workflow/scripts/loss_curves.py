"""Losses over training."""

from sublora.analysis.figures.training import loss_curves
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save
from sublora.analysis.traces import read_metrics

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs)
    figure = loss_curves(runs, read_metrics(snakemake.input.metrics, runs, steps=snakemake.params.steps))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
