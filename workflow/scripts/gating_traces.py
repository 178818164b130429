"""Gates over training."""

from sublora.analysis.figures.gating import gating_traces
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save
from sublora.analysis.traces import read_gating_traces

with user_errors_to(snakemake.log[0]):
    runs = read_runs_csv(snakemake.input.runs)
    figure = gating_traces(runs, read_gating_traces(snakemake.input.gates, runs, steps=snakemake.params.steps))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
