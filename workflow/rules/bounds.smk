"""From a trained network to its bound: encode and score (on a GPU), then the inequalities (seconds, beside Snakemake)."""


rule bounds:
    input:
        expand(
            "results/runs/d{budget}_{allocation}_seed{seed}/{file}",
            **GRID,
            file=["certificate.bin", "losses.npz", "bounds.json", "bounds_metrics.pt"],
        ),
    localrule: True


rule score:
    input:
        **BASE,
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=INDEX)),
        checkpoint="results/runs/d{budget}_{allocation}_seed{seed}/best_ckpt.pt",
    output:
        certificate="results/runs/d{budget}_{allocation}_seed{seed}/certificate.bin",
        losses="results/runs/d{budget}_{allocation}_seed{seed}/losses.npz",
    log:
        "logs/score/d{budget}_{allocation}_seed{seed}.log",
    benchmark:
        "logs/score/d{budget}_{allocation}_seed{seed}.benchmark.tsv"
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
        certificate="results/runs/d{budget}_{allocation}_seed{seed}/certificate.bin",
        losses="results/runs/d{budget}_{allocation}_seed{seed}/losses.npz",
    output:
        json="results/runs/d{budget}_{allocation}_seed{seed}/bounds.json",
        metrics="results/runs/d{budget}_{allocation}_seed{seed}/bounds_metrics.pt",
    log:
        "logs/bound/d{budget}_{allocation}_seed{seed}.log",
    benchmark:
        "logs/bound/d{budget}_{allocation}_seed{seed}.benchmark.tsv"
    params:
        *settings_of("bound"),
        settings_file=settings_file,
        folder=run_folder,
    localrule: True
    shell:
        "sublora bound {params.folder:q} --config {params.settings_file:q} > {log:q} 2>&1"
