"""Near duplicates among the documents, and what the runs' bounds owe to them. In the report where data.near_duplicates says so."""

DOCUMENT_FACTS = f"{DATA}/near_duplicates.json"
NEAR_DUPLICATES = "results/near_duplicates.json"


# Needs the documents alone, so it runs beside the base, when a core has nothing else to do.
rule near_duplicates_in_data:
    input:
        meta=f"{DATA}/meta.json",
        tokens=ancient(expand(f"{DATA}/{{split}}.bin", split=["train", "val", "test"])),
        index=ancient(expand(f"{DATA}/{{name}}.npy", name=["eot_indices", "doc_lengths"])),
    output:
        DOCUMENT_FACTS,
    log:
        f"logs/near_duplicates/{SETTINGS.data.name}.log",
    benchmark:
        f"logs/near_duplicates/{SETTINGS.data.name}.benchmark.tsv"
    params:
        settings_file=settings_file,
    localrule: True
    shell:
        "sublora duplicates --documents --config {params.settings_file:q} > {log:q} 2>&1"


rule near_duplicates:
    input:
        documents=DOCUMENT_FACTS,
        runs=rules.bounds.input,
    output:
        NEAR_DUPLICATES,
    log:
        "logs/near_duplicates/runs.log",
    benchmark:
        "logs/near_duplicates/runs.benchmark.tsv"
    params:
        settings_file=settings_file,
    localrule: True
    shell:
        "sublora duplicates --config {params.settings_file:q} > {log:q} 2>&1"
