"""Every claimed bound recomputed from its certificate, in a process that knows nothing else: `snakemake verify`."""


rule verify:
    input:
        [f"results/verification/{run.name}.txt" for run in RUNS],
    localrule: True


rule verify_run:
    input:
        **BASE,
        **SCALES,
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=INDEX)),
        certificate=f"results/runs/{RUN}/certificate.bin",
        losses=f"results/runs/{RUN}/losses.npz",
        json=f"results/runs/{RUN}/bounds.json",
    output:
        f"results/verification/{RUN}.txt",
    log:
        f"logs/verify/{RUN}.log",
    benchmark:
        f"logs/verify/{RUN}.benchmark.tsv"
    params:
        *settings_of("score"),
        settings_file=settings_file,
        folder=lambda wildcards, input: Path(input.json).parent,
    threads: SETTINGS.compute.threads
    resources:
        gpu=1,
        cpus_per_task=SETTINGS.compute.threads,
    shell:
        "start_job {log:q}; "
        "sublora verify {params.folder:q} --config {params.settings_file:q} > {log:q} 2>&1 && cp {log:q} {output:q}"
