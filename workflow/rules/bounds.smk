"""From a trained network to its bound: encode and score (on a GPU), then the inequalities (seconds, beside Snakemake)."""


rule bounds:
    input:
        files_of_runs("certificate.bin", "losses.npz", "bounds.json", "bounds_metrics.pt"),
    localrule: True


rule score:
    input:
        **BASE,
        **SCALES,
        **BASE_LOSSES,
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=INDEX)),
        checkpoint=f"results/runs/{RUN}/best_ckpt.pt",
    output:
        certificate=f"results/runs/{RUN}/certificate.bin",
        losses=f"results/runs/{RUN}/losses.npz",
    log:
        f"logs/score/{RUN}.log",
    benchmark:
        f"logs/score/{RUN}.benchmark.tsv"
    params:
        *settings_of("score"),
        settings_file=settings_file,
        folder=run_folder,
    threads: SETTINGS.compute.threads
    resources:
        gpu=1,
        cpus_per_task=SETTINGS.compute.threads,
    shell:
        "start_job {log:q}; sublora score {params.folder:q} --config {params.settings_file:q} > {log:q} 2>&1"


rule bound:
    input:
        certificate=f"results/runs/{RUN}/certificate.bin",
        losses=f"results/runs/{RUN}/losses.npz",
    output:
        json=f"results/runs/{RUN}/bounds.json",
        metrics=f"results/runs/{RUN}/bounds_metrics.pt",
    log:
        f"logs/bound/{RUN}.log",
    benchmark:
        f"logs/bound/{RUN}.benchmark.tsv"
    params:
        *settings_of("bound"),
        settings_file=settings_file,
        folder=run_folder,
    localrule: True
    shell:
        "sublora bound {params.folder:q} --config {params.settings_file:q} > {log:q} 2>&1"
