"""results/report.html: one page for readers without Snakemake. Figures stand in it in the order of their captions."""

# The page is about allocations: figures that compare networks have no place on it.
CAPTIONS = ["workflow", "yardsticks", "summary", "hypotheses"]
CAPTIONS += [figure.name for figure in FIGURES if figure.module != "networks"]


rule html_report:
    input:
        # Where it was measured on request it is kept up to date.
        **(
            {"near_duplicates": NEAR_DUPLICATES}
            if SETTINGS.data.near_duplicates or os.path.exists(workflow.modifier.modify_path(NEAR_DUPLICATES))
            else {}
        ),
        runs="results/runs.csv",
        yardsticks=READ["yardsticks"],
        losses=READ["test_losses_U"],
        hypotheses="results/tables/hypotheses.csv",
        figures=FIGURE_FILES,
        captions=[caption_file(name) for name in CAPTIONS],
    output:
        html=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"page": "Report for readers without Snakemake"},
        ),
    log:
        "logs/html_report.log",
    benchmark:
        "logs/html_report.benchmark.tsv"
    params:
        settings_file=settings_file,
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/report.py"
