"""bounds.json of every run -> one table, of runs that were made with the settings in force."""

from pathlib import Path

from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.config import load_settings
from sublora.runs.starts import check_in_force

with user_errors_to(snakemake.log[0]):
    check_in_force(
        [Path(bounds).parent for bounds in snakemake.input.bounds], load_settings(snakemake.params.settings_file)
    )
    write_runs_csv(collect_runs(snakemake.input.bounds), Path(snakemake.output[0]))
