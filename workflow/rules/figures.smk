"""runs.csv, then from it and the histories of training every figure and table. No job here needs a GPU."""

from collections import namedtuple


# One row per figure, in the order of the report's page:
# name    of the files, the caption in workflow/report/, and the function that draws it
# title   in Snakemake's report
# module  of sublora.analysis.figures, which has the function
# reads   arguments of the function beside the runs
# per     "budget": one figure for each budget, which waits for its runs alone; "grid": one figure of all runs
# drawn   whether the grid has what the figure shows
class Figure(namedtuple("Figure", "name title module reads per drawn")):
    function = property(lambda self: f"figures.{self.module}.{self.name}")


ALLOCATIONS, TRAINED, SIZES = not COMPARES_NETWORKS, bool(SETTINGS.grid.trained), bool(SETTINGS.grid.sizes)
GATES = ALLOCATIONS and "learned" in GRID["allocation"]
FIGURES = [
    Figure("pareto", "Loss against KL", "tradeoff", "yardsticks", "budget", ALLOCATIONS),
    Figure("bound_decomposition", "What the bound consists of", "allocation", "yardsticks", "budget", ALLOCATIONS),
    Figure("bound_by_inequality", "Inequalities compared", "bounds", "", "budget", ALLOCATIONS),
    Figure("bound_against_budget", "Bound against d", "bounds", "yardsticks", "grid", ALLOCATIONS),
    Figure("allocation_grid", "Allocations side by side", "allocation", "", "grid", ALLOCATIONS),
    Figure("compression", "Complexity, size, performance", "tradeoff", "", "budget", ALLOCATIONS),
    Figure("gating_trend", "Gates by depth", "training", "", "grid", GATES),
    Figure("gating_heatmap", "Gates", "training", "", "budget", GATES),
    Figure("gating_traces", "Gates during training", "training", "traces", "budget", GATES),
    Figure("loss_curves", "Loss during training", "training", "metrics", "budget", ALLOCATIONS),
    Figure("bound_against_compressed_size", "Bound against compressed size", "networks", "yardsticks", "grid", TRAINED),
    Figure("bound_against_model_size", "Bound against model size", "networks", "yardsticks", "grid", SIZES),
]
# One row per table; file: its name without a suffix; function: in sublora.analysis; reads, drawn: as for a figure.
Table = namedtuple("Table", "file title function reads drawn")
YARDSTICK_TABLE = "yardsticks.yardstick_table"
TABLES = [
    Table("yardsticks", "What the network adds", YARDSTICK_TABLE, "yardsticks test_losses_U", True),
    Table("summary", "Summary", "tables.summary_table", "", ALLOCATIONS),
    Table("hypotheses", "Hypotheses", "hypotheses.hypothesis_table", "", ALLOCATIONS),
    Table("networks", "Networks side by side", "tables.network_table", "", COMPARES_NETWORKS),
]
LATEX_TABLES = {"summary"}
ARMS = {key: GRID[key] for key in ("allocation", "seed")}
LEARNED_ARMS = ARMS | {"allocation": [name for name in GRID["allocation"] if name == "learned"]}
READ = {
    "yardsticks": "results/yardsticks.json",
    "test_losses_U": files_of_runs("losses.npz"),
    "metrics": expand("results/runs/d{{budget}}_{allocation}_seed{seed}/metrics.csv", **ARMS),
    "traces": expand("results/runs/d{{budget}}_{allocation}_seed{seed}/gating_trace.csv", **LEARNED_ARMS),
}
HISTORIES = {"metrics", "traces"}

FIGURE_FILES = [
    f"results/figures/{name}.png"
    for figure in FIGURES
    if figure.drawn
    for name in (expand(f"{figure.name}_d{{budget}}", **GRID) if figure.per == "budget" else [figure.name])
]


rule figures:
    input:
        FIGURE_FILES,
        [path.replace(".png", ".pdf") for path in FIGURE_FILES],
    localrule: True


rule tables:
    input:
        [f"results/tables/{table.file}.csv" for table in TABLES if table.drawn],
        [f"results/tables/{table.file}.tex" for table in TABLES if table.drawn and table.file in LATEX_TABLES],
    localrule: True


# One table per budget, so that the figures of one budget wait for its runs alone.
rule runs_of_budget:
    input:
        bounds=expand("results/runs/d{{budget}}_{allocation}_seed{seed}/bounds.json", **ARMS),
    output:
        "results/runs_d{budget}.csv",
    log:
        "logs/runs_of_budget/d{budget}.log",
    benchmark:
        "logs/runs_of_budget/d{budget}.benchmark.tsv"
    params:
        settings_file=settings_file,
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/runs.py"


rule runs:
    input:
        bounds=files_of_runs("bounds.json"),
    output:
        "results/runs.csv",
    log:
        "logs/runs.log",
    benchmark:
        "logs/runs.benchmark.tsv"
    params:
        settings_file=settings_file,
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/runs.py"


# All figures of a budget are drawn by one job, and so are those of the grid, and all tables: starting Python and
# importing matplotlib and pandas takes longer than drawing. What a job makes, and what its parts read, it is told by
# `params`, one line each: the function below sublora.analysis, then its arguments beside the runs.
for per in ("budget", "grid"):
    of_budget = per == "budget"
    drawn = [figure for figure in FIGURES if figure.drawn and figure.per == per]
    suffix, folder = ("_d{budget}", "figures_of_budget/d{budget}") if of_budget else ("", "figures_of_grid")
    if not drawn:
        continue
    read, lines = made_by(drawn, READ)

    rule:
        name:
            f"figures_of_{per}"
        input:
            **read,
            runs=f"results/runs{suffix}.csv",
        output:
            **{
                f"{figure.name}_png": report(
                    f"results/figures/{figure.name}{suffix}.png",
                    caption=f"../report/{figure.name}.rst",
                    category="Figures",
                    labels={"figure": figure.title, "budget": "{budget}" if of_budget else "all"},
                )
                for figure in drawn
            },
            **{f"{figure.name}_pdf": f"results/figures/{figure.name}{suffix}.pdf" for figure in drawn},
        log:
            f"logs/{folder}.log",
        benchmark:
            f"logs/{folder}.benchmark.tsv"
        params:
            **({"steps": SETTINGS.training.steps} if HISTORIES.intersection(read) else {}),
            settings_file=settings_file,
            numerics=NUMERICS_VERSIONS["figures"],
            figures=lines,
        localrule: True
        script:
            "../scripts/figures.py"


MADE_TABLES = [table for table in TABLES if table.drawn]
READ_BY_TABLES, TABLE_LINES = made_by(MADE_TABLES, READ)


rule tables_of_grid:
    input:
        **READ_BY_TABLES,
        runs="results/runs.csv",
    output:
        **{
            f"{table.file}_tex": f"results/tables/{table.file}.tex"
            for table in MADE_TABLES
            if table.file in LATEX_TABLES
        },
        **{
            f"{table.file}_csv": report(
                f"results/tables/{table.file}.csv",
                caption=f"../report/{table.file}.rst",
                category="Tables",
                labels={"table": table.title},
            )
            for table in MADE_TABLES
        },
    log:
        "logs/tables_of_grid.log",
    benchmark:
        "logs/tables_of_grid.benchmark.tsv"
    params:
        settings_file=settings_file,
        numerics=NUMERICS_VERSIONS["figures"],
        tables=[f"{table.file} {line}" for table, line in zip(MADE_TABLES, TABLE_LINES)],
    localrule: True
    script:
        "../scripts/tables.py"
