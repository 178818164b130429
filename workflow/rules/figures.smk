"""runs.csv, then from it and the traces of training every figure and table. No job here needs a GPU."""

FIGURES = expand(
    "results/figures/{name}_d{budget}.png",
    name=["pareto", "compression", "bound_decomposition", "bound_by_inequality", "loss_curves"],
    budget=GRID["budget"],
)
FIGURES += expand("results/figures/{name}.png", name=["allocation_grid", "bound_against_budget"])
if HAS_GATES:
    FIGURES += expand(
        "results/figures/{name}_d{budget}.png", name=["gating_heatmap", "gating_traces"], budget=GRID["budget"]
    )
    FIGURES += ["results/figures/gating_trend.png"]

TABLES = expand("results/tables/{name}", name=["yardsticks.csv", "summary.csv", "summary.tex", "hypotheses.csv"])

# Allocations are compared within one network and one kind of training: another grid has other figures and tables.
if COMPARES_NETWORKS:
    FIGURES = [
        f"results/figures/bound_against_{name}.png"
        for name, values in (("compressed_size", SETTINGS.grid.trained), ("model_size", SETTINGS.grid.sizes))
        if values
    ]
    TABLES = expand("results/tables/{name}.csv", name=["yardsticks", "networks"])


rule figures:
    input:
        FIGURES,
        [path.replace(".png", ".pdf") for path in FIGURES],
    localrule: True


rule tables:
    input:
        TABLES,
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
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/runs.py"


rule pareto:
    input:
        runs="results/runs_d{budget}.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        png=report(
            "results/figures/pareto_d{budget}.png",
            caption="../report/pareto.rst",
            category="Figures",
            labels={"figure": "Loss against KL", "budget": "{budget}"},
        ),
        pdf="results/figures/pareto_d{budget}.pdf",
    log:
        "logs/pareto/d{budget}.log",
    benchmark:
        "logs/pareto/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/pareto.py"


rule compression:
    input:
        runs="results/runs_d{budget}.csv",
    output:
        png=report(
            "results/figures/compression_d{budget}.png",
            caption="../report/compression.rst",
            category="Figures",
            labels={"figure": "Complexity, size, performance", "budget": "{budget}"},
        ),
        pdf="results/figures/compression_d{budget}.pdf",
    log:
        "logs/compression/d{budget}.log",
    benchmark:
        "logs/compression/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/compression.py"


rule allocation_grid:
    input:
        runs="results/runs.csv",
    output:
        png=report(
            "results/figures/allocation_grid.png",
            caption="../report/allocation_grid.rst",
            category="Figures",
            labels={"figure": "Allocations side by side", "budget": "all"},
        ),
        pdf="results/figures/allocation_grid.pdf",
    log:
        "logs/allocation_grid.log",
    benchmark:
        "logs/allocation_grid.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/allocation_grid.py"


rule bound_decomposition:
    input:
        runs="results/runs_d{budget}.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        png=report(
            "results/figures/bound_decomposition_d{budget}.png",
            caption="../report/bound_decomposition.rst",
            category="Figures",
            labels={"figure": "What the bound consists of", "budget": "{budget}"},
        ),
        pdf="results/figures/bound_decomposition_d{budget}.pdf",
    log:
        "logs/bound_decomposition/d{budget}.log",
    benchmark:
        "logs/bound_decomposition/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/bound_decomposition.py"


rule bound_by_inequality:
    input:
        runs="results/runs_d{budget}.csv",
    output:
        png=report(
            "results/figures/bound_by_inequality_d{budget}.png",
            caption="../report/bound_by_inequality.rst",
            category="Figures",
            labels={"figure": "Inequalities compared", "budget": "{budget}"},
        ),
        pdf="results/figures/bound_by_inequality_d{budget}.pdf",
    log:
        "logs/bound_by_inequality/d{budget}.log",
    benchmark:
        "logs/bound_by_inequality/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/bound_by_inequality.py"


rule bound_against_budget:
    input:
        runs="results/runs.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        png=report(
            "results/figures/bound_against_budget.png",
            caption="../report/bound_against_budget.rst",
            category="Figures",
            labels={"figure": "Bound against d", "budget": "all"},
        ),
        pdf="results/figures/bound_against_budget.pdf",
    log:
        "logs/bound_against_budget.log",
    benchmark:
        "logs/bound_against_budget.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/bound_against_budget.py"


rule bound_against_compressed_size:
    input:
        runs="results/runs.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        png=report(
            "results/figures/bound_against_compressed_size.png",
            caption="../report/bound_against_compressed_size.rst",
            category="Figures",
            labels={"figure": "Bound against compressed size", "budget": "all"},
        ),
        pdf="results/figures/bound_against_compressed_size.pdf",
    log:
        "logs/bound_against_compressed_size.log",
    benchmark:
        "logs/bound_against_compressed_size.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/bound_against_compressed_size.py"


rule bound_against_model_size:
    input:
        runs="results/runs.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        png=report(
            "results/figures/bound_against_model_size.png",
            caption="../report/bound_against_model_size.rst",
            category="Figures",
            labels={"figure": "Bound against model size", "budget": "all"},
        ),
        pdf="results/figures/bound_against_model_size.pdf",
    log:
        "logs/bound_against_model_size.log",
    benchmark:
        "logs/bound_against_model_size.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/bound_against_model_size.py"


rule loss_curves:
    input:
        runs="results/runs_d{budget}.csv",
        metrics=expand("results/runs/d{{budget}}_{allocation}_seed{seed}/metrics.csv", **ARMS),
    output:
        png=report(
            "results/figures/loss_curves_d{budget}.png",
            caption="../report/loss_curves.rst",
            category="Figures",
            labels={"figure": "Loss during training", "budget": "{budget}"},
        ),
        pdf="results/figures/loss_curves_d{budget}.pdf",
    log:
        "logs/loss_curves/d{budget}.log",
    benchmark:
        "logs/loss_curves/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
        steps=SETTINGS.training.steps,
    localrule: True
    script:
        "../scripts/loss_curves.py"


rule gating_heatmap:
    input:
        runs="results/runs_d{budget}.csv",
    output:
        png=report(
            "results/figures/gating_heatmap_d{budget}.png",
            caption="../report/gating_heatmap.rst",
            category="Figures",
            labels={"figure": "Gates", "budget": "{budget}"},
        ),
        pdf="results/figures/gating_heatmap_d{budget}.pdf",
    log:
        "logs/gating_heatmap/d{budget}.log",
    benchmark:
        "logs/gating_heatmap/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/gating_heatmap.py"


rule gating_trend:
    input:
        runs="results/runs.csv",
    output:
        png=report(
            "results/figures/gating_trend.png",
            caption="../report/gating_trend.rst",
            category="Figures",
            labels={"figure": "Gates by depth", "budget": "all"},
        ),
        pdf="results/figures/gating_trend.pdf",
    log:
        "logs/gating_trend.log",
    benchmark:
        "logs/gating_trend.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/gating_trend.py"


rule gating_traces:
    input:
        runs="results/runs_d{budget}.csv",
        gates=expand("results/runs/d{{budget}}_{allocation}_seed{seed}/gating_trace.csv", **LEARNED_ARMS),
    output:
        png=report(
            "results/figures/gating_traces_d{budget}.png",
            caption="../report/gating_traces.rst",
            category="Figures",
            labels={"figure": "Gates during training", "budget": "{budget}"},
        ),
        pdf="results/figures/gating_traces_d{budget}.pdf",
    log:
        "logs/gating_traces/d{budget}.log",
    benchmark:
        "logs/gating_traces/d{budget}.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
        steps=SETTINGS.training.steps,
    localrule: True
    script:
        "../scripts/gating_traces.py"


rule yardsticks_table:
    input:
        runs="results/runs.csv",
        yardsticks=f"{DATA}/yardsticks.json",
    output:
        csv=report(
            "results/tables/yardsticks.csv",
            caption="../report/yardsticks.rst",
            category="Tables",
            labels={"table": "What the network adds"},
        ),
    log:
        "logs/yardsticks_table.log",
    benchmark:
        "logs/yardsticks_table.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/yardsticks_table.py"


rule networks:
    input:
        runs="results/runs.csv",
    output:
        csv=report(
            "results/tables/networks.csv",
            caption="../report/networks.rst",
            category="Tables",
            labels={"table": "Networks side by side"},
        ),
    log:
        "logs/networks.log",
    benchmark:
        "logs/networks.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/networks.py"


rule summary:
    input:
        runs="results/runs.csv",
    output:
        csv=report(
            "results/tables/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "Summary"},
        ),
        tex="results/tables/summary.tex",
    log:
        "logs/summary.log",
    benchmark:
        "logs/summary.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/summary.py"


rule hypotheses:
    input:
        runs="results/runs.csv",
    output:
        csv=report(
            "results/tables/hypotheses.csv",
            caption="../report/hypotheses.rst",
            category="Tables",
            labels={"table": "Hypotheses"},
        ),
    log:
        "logs/hypotheses.log",
    benchmark:
        "logs/hypotheses.benchmark.tsv"
    params:
        numerics=NUMERICS_VERSIONS["figures"],
    localrule: True
    script:
        "../scripts/hypotheses.py"
