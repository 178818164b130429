"""The corpus as tokens. Runs where Snakemake runs: it alone needs the internet."""

DATA = f"data/{SETTINGS.data.name}"
# Arrays that say where documents and units begin, or which source a document is from.
INDEX = ["eot_indices", "doc_lengths"]
if SETTINGS.data.unit == "source":
    INDEX += [f"unit_starts_{split}" for split in ("train", "val", "test")]
elif SETTINGS.data.knows_sources:
    INDEX += ["source_ids"]
# A base is trained on documents of its own.
TRAINS_BASE = SETTINGS.base.kind == "trained"
BASE_DATASET_FILES = ["meta.json", "train.bin", "val.bin", "test.bin", "eot_indices.npy", "doc_lengths.npy"]
BASE_DATA = f"data/{SETTINGS.base.name}" if TRAINS_BASE else None


rule data:
    input:
        f"{DATA}/meta.json",
    localrule: True


# The base's documents first: a text that is among them is dropped from the others.
rule prepare:
    output:
        meta=f"{DATA}/meta.json",
        train=f"{DATA}/train.bin",
        val=f"{DATA}/val.bin",
        test=f"{DATA}/test.bin",
        index=expand(f"{DATA}/{{name}}.npy", name=INDEX),
        base=expand(f"{BASE_DATA}/{{file}}", file=BASE_DATASET_FILES if TRAINS_BASE else []),
    log:
        f"logs/prepare/{SETTINGS.data.name}.log",
    benchmark:
        f"logs/prepare/{SETTINGS.data.name}.benchmark.tsv"
    params:
        *settings_of("data"),
        settings_file=settings_file,
    threads: SETTINGS.data.workers
    localrule: True
    shell:
        "sublora prepare --config {params.settings_file:q} > {log:q} 2>&1"
