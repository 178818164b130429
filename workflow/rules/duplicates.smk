"""Near duplicates among the documents, and what the runs' bounds owe to them. In the report where data.near_duplicates says so."""

NEAR_DUPLICATES = f"{DATA}/near_duplicates.json"


rule near_duplicates:
    input:
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=["eot_indices", "doc_lengths"])),
        runs=rules.bounds.input,
    output:
        NEAR_DUPLICATES,
    log:
        f"logs/near_duplicates/{SETTINGS.data.name}.log",
    benchmark:
        f"logs/near_duplicates/{SETTINGS.data.name}.benchmark.tsv"
    params:
        settings_file=settings_file,
    localrule: True
    shell:
        "sublora duplicates --config {params.settings_file:q} > {log:q} 2>&1"
