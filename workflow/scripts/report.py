"""One page with everything that was found."""

from sublora.analysis.report.page import write_report
from sublora.analysis.scripting import user_errors_to
from sublora.config import load_settings

with user_errors_to(snakemake.log[0]):
    write_report(
        snakemake.output.html,
        runs_csv=snakemake.input.runs,
        yardsticks_json=snakemake.input.yardsticks,
        losses=snakemake.input.losses,
        hypotheses_csv=snakemake.input.hypotheses,
        figures=snakemake.input.figures,
        captions=snakemake.input.captions,
        near_duplicates_json=snakemake.input.get("near_duplicates"),
        settings=load_settings(snakemake.params.settings_file),
    )
