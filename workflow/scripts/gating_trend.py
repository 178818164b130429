"""Where the gates ended, by depth."""

from sublora.analysis.figures.gating import gating_trend
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.analysis.style import save

with user_errors_to(snakemake.log[0]):
    figure = gating_trend(read_runs_csv(snakemake.input.runs, whole_sweep=True))
    save(figure, png=snakemake.output.png, pdf=snakemake.output.pdf)
