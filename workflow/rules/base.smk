"""The base that all runs adapt, where it is not random: trained once, or imported from a pretrained model."""

# A random base follows from each run's seed; every other one is a file that all runs share.
HAS_BASE = SETTINGS.base.kind != "random"
# base.json names the weights by their hash and alone decides whether a new base is another one.
BASE = {"base": "results/base/base.json", "base_weights": ancient("results/base/base.safetensors")} if HAS_BASE else {}

# What the scales of the subspace follow from: gradients of the base on its own corpus.
SCALE = SETTINGS.subspace.scale
SCALES = {"scales": "results/scales.json"} if SCALE else {}

# What the base loses, once for all runs, where bounds are anchored on it.
BASE_LOSSES = {"base_losses": "results/base_losses.npz"} if SETTINGS.anchors_on_the_base else {}

if HAS_BASE:

    rule base:
        input:
            data=expand(f"{BASE_DATA}/{{file}}", file="meta.json" if TRAINS_BASE else []),
            tokens=ancient(expand(f"{BASE_DATA}/{{split}}.bin", split=["train", "val"] if TRAINS_BASE else [])),
        output:
            json="results/base/base.json",
            weights="results/base/base.safetensors",
        log:
            "logs/base.log",
        benchmark:
            "logs/base.benchmark.tsv"
        params:
            *settings_of("base"),
            settings_file=settings_file,
            folder=run_folder,
        threads: SETTINGS.base.threads if TRAINS_BASE else 1
        resources:
            gpu=1,
            cpus_per_task=SETTINGS.base.threads if TRAINS_BASE else 1,
        # A pretrained model may have to be downloaded, which only the machine that Snakemake runs on can do.
        localrule: not TRAINS_BASE
        shell:
            "start_job {log:q}; sublora base --config {params.settings_file:q} --out {params.folder:q} > {log:q} 2>&1"


if SCALES:

    rule scales:
        input:
            **BASE,
            data=f"{BASE_DATA}/meta.json",
            tokens=ancient(f"{BASE_DATA}/train.bin"),
        output:
            "results/scales.json",
        log:
            "logs/scales.log",
        benchmark:
            "logs/scales.benchmark.tsv"
        # No exponent: it decides what is made of the gradients.
        params:
            f"kind {SCALE.partition('(')[0]}, format {SCALES_FORMAT}",
            f"adapt {SETTINGS.subspace.adapt}, {SETTINGS.lora}",
            settings_file=settings_file,
        threads: SETTINGS.compute.threads
        resources:
            gpu=1,
            cpus_per_task=SETTINGS.compute.threads,
        shell:
            "start_job {log:q}; sublora scales --config {params.settings_file:q} > {log:q} 2>&1"
