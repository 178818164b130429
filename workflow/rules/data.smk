"""The corpus as tokens. Runs where Snakemake runs: it alone needs the internet."""


localrules:
    data,
    prepare,


rule data:
    input:
        f"{DATA}/meta.json",


rule prepare:
    output:
        meta=f"{DATA}/meta.json",
        train=f"{DATA}/train.bin",
        val=f"{DATA}/val.bin",
        test=f"{DATA}/test.bin",
        eot_indices=f"{DATA}/eot_indices.npy",
        doc_lengths=f"{DATA}/doc_lengths.npy",
    log:
        f"logs/prepare/{SETTINGS.data.name}.log",
    benchmark:
        f"logs/prepare/{SETTINGS.data.name}.benchmark.tsv"
    params:
        *settings_of("data"),
        settings_file=settings_file,
    threads: SETTINGS.data.workers
    shell:
        "sublora prepare --config {params.settings_file} > {log} 2>&1"
