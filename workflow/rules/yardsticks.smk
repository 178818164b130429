"""The trivial models and the frozen base, bounded like the networks: what every bound is set beside."""


rule yardsticks:
    input:
        **BASE,
        **SCALES,
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=INDEX)),
    output:
        "results/yardsticks.json",
        **BASE_LOSSES,
    log:
        f"logs/yardsticks/{SETTINGS.data.name}.log",
    benchmark:
        f"logs/yardsticks/{SETTINGS.data.name}.benchmark.tsv"
    params:
        *settings_of("yardsticks"),
        settings_file=settings_file,
    threads: SETTINGS.compute.threads
    resources:
        gpu=1,
        cpus_per_task=SETTINGS.compute.threads,
    shell:
        "start_job {log:q}; sublora yardsticks --config {params.settings_file:q} > {log:q} 2>&1"
