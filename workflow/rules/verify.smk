"""Every claimed bound recomputed from its certificate, in a process that knows nothing else: `snakemake verify`."""


rule verify:
    input:
        expand("results/verification/d{budget}_{allocation}_seed{seed}.txt", **GRID),
    localrule: True


rule verify_run:
    input:
        **BASE,
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=INDEX)),
        certificate="results/runs/d{budget}_{allocation}_seed{seed}/certificate.bin",
        losses="results/runs/d{budget}_{allocation}_seed{seed}/losses.npz",
        json="results/runs/d{budget}_{allocation}_seed{seed}/bounds.json",
    output:
        "results/verification/d{budget}_{allocation}_seed{seed}.txt",
    log:
        "logs/verify/d{budget}_{allocation}_seed{seed}.log",
    benchmark:
        "logs/verify/d{budget}_{allocation}_seed{seed}.benchmark.tsv"
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
