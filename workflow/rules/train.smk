"""One training for each point of the grid."""


rule trainings:
    input:
        expand(
            "results/runs/d{budget}_{allocation}_seed{seed}/{file}",
            **GRID,
            file=["best_ckpt.pt", "metrics.csv", "gating_trace.csv"],
        ),
    localrule: True


# meta.json holds the hashes of the data. It alone decides whether new data are other data, so that preparing the
# same data again (`snakemake data`) retrains nothing. The resume state, results/runs/*/state/, is no output: Snakemake
# deletes the outputs of a failed job.
rule train:
    input:
        **BASE,
        meta=f"{DATA}/meta.json",
        train=ancient(f"{DATA}/train.bin"),
        val=ancient(f"{DATA}/val.bin"),
    output:
        checkpoint="results/runs/d{budget}_{allocation}_seed{seed}/best_ckpt.pt",
        metrics="results/runs/d{budget}_{allocation}_seed{seed}/metrics.csv",
        gates="results/runs/d{budget}_{allocation}_seed{seed}/gating_trace.csv",
    log:
        "logs/train/d{budget}_{allocation}_seed{seed}.log",
    benchmark:
        "logs/train/d{budget}_{allocation}_seed{seed}.benchmark.tsv"
    params:
        *settings_of("train"),
        settings_file=settings_file,
        folder=run_folder,
        launcher=LAUNCHER,
    threads: SETTINGS.compute.threads * GPUS_PER_TRAINING
    resources:
        gpu=GPUS_PER_TRAINING,
        cpus_per_task=SETTINGS.compute.threads * GPUS_PER_TRAINING,
    shell:
        "start_job {log:q}; {params.launcher} train --config {params.settings_file:q} --budget {wildcards.budget:q} "
        "--allocation {wildcards.allocation:q} --seed {wildcards.seed:q} --out {params.folder:q} > {log:q} 2>&1"
