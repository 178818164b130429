"""One training for each point of the grid."""

# A training on several GPUs is a process for each. Schedulers such as SLURM read the resource `gpu`; locally, jobs
# share the GPUs by locks of their own.
GPUS_PER_TRAINING = SETTINGS.compute.gpus_per_training
LAUNCHER = (
    "sublora"
    if GPUS_PER_TRAINING == 1
    else f"torchrun --standalone --nproc-per-node={GPUS_PER_TRAINING} --no-python sublora"
)


rule trainings:
    input:
        files_of_runs("best_ckpt.pt", "metrics.csv", "gating_trace.csv"),
    localrule: True


# meta.json holds the hashes of the data. It alone decides whether new data are other data, so that preparing the
# same data again (`snakemake data`) retrains nothing. The resume state, results/runs/*/state/, is no output: Snakemake
# deletes the outputs of a failed job.
rule train:
    input:
        **BASE,
        **SCALES,
        meta=f"{DATA}/meta.json",
        train=ancient(f"{DATA}/train.bin"),
        val=ancient(f"{DATA}/val.bin"),
    output:
        checkpoint=f"results/runs/{RUN}/best_ckpt.pt",
        metrics=f"results/runs/{RUN}/metrics.csv",
        gates=f"results/runs/{RUN}/gating_trace.csv",
    log:
        f"logs/train/{RUN}.log",
    benchmark:
        f"logs/train/{RUN}.benchmark.tsv"
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
        f"start_job {{log:q}}; {{params.launcher}} train --config {{params.settings_file:q}} {RUN_OPTIONS} "
        "--out {params.folder:q} > {log:q} 2>&1"
