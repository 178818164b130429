"""Preparing a corpus: tokenization against tiktoken's own batches, and memory against the size of the corpus.

    python -m benchmarks data --tokens 2000000 20000000 200000000

The text is synthetic: lines of Python's own documentation (pydoc_data.topics, the same on every machine) in random
order, documents as long as OpenWebText's, one in twenty a copy of another.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.hardware import Machine
from benchmarks.synthetic import LENGTH_SIGMA, OPENWEBTEXT_MEAN_TOKENS, settings_with
from benchmarks.timing import compared, timed
from sublora.data.corpora.reader import batch_texts
from sublora.data.tokenize import tokenize_batch
from sublora.data.tokenizers import load_tokenizer
from sublora.system.streams import generator

REPOSITORY = Path(__file__).resolve().parents[1]
VOCABULARY = REPOSITORY / ".cache" / "tiktoken"
CHARACTERS_PER_TOKEN = 3.6
"""Mean of this text, about."""
COPY_EVERY = 20
"""One document in this number is a copy of another."""
RATE_TOKENS = 1_000_000
REPETITIONS = 5
HELD_OUT_DOCUMENTS = 20

PREPARE = """
import json, pathlib, resource, sys, time
from sublora import config
from sublora.data.prepare import prepare_dataset

path = pathlib.Path(sys.argv[1])
start = time.perf_counter()
prepare_dataset(config.load_settings(path).data, config.root_of(path))
seconds = time.perf_counter() - start
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
status = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1]
print(json.dumps({
    "seconds": seconds,
    "own_cpu_seconds": own.ru_utime + own.ru_stime,
    "workers_cpu_seconds": workers.ru_utime + workers.ru_stime,
    "peak_memory_mib": int(status.split()[0]) / 1024,
    "largest_worker_memory_mib": workers.ru_maxrss / 1024,
}))
"""
"""What `sublora prepare` does, and what it took. VmHWM: ru_maxrss would start at the size of the parent process."""


def run(machine: Machine, sizes: list[int]) -> dict[str, Any]:
    """Rates of tokenization, then time and memory of preparing corpora of about these numbers of tokens."""
    load_vocabulary()
    rates = _rates(machine)
    return {"workers": machine.threads, "rates": rates, "sizes": [_prepared(size, machine.threads) for size in sizes]}


def load_vocabulary() -> None:
    """Load GPT-2's vocabulary, from where tests/fetch_gpt2_vocabulary.py puts it if it is there; else UserError."""
    if "TIKTOKEN_CACHE_DIR" not in os.environ and VOCABULARY.is_dir():
        os.environ["TIKTOKEN_CACHE_DIR"] = str(VOCABULARY)
    load_tokenizer("gpt2")


def _rates(machine: Machine) -> dict[str, Any]:
    """What a worker does with texts (tokens, keys, records) against tiktoken's encode_ordinary_batch on one thread."""
    import tiktoken

    data = settings_with({}).data
    texts = list(documents(RATE_TOKENS))
    batches = list(batch_texts((text, None) for text in texts))
    encoding = tiktoken.get_encoding("gpt2")

    def product() -> int:
        made = [tokenize_batch(batch, data) for batch in batches]
        return sum((len(record) - 24) // 2 for batch in made for record in batch.records)

    def reference() -> int:
        return sum(map(len, encoding.encode_ordinary_batch(texts, num_threads=1)))

    def on_all_cores() -> int:
        return sum(map(len, encoding.encode_ordinary_batch(texts, num_threads=machine.threads)))

    if product() != reference():
        raise RuntimeError("sublora and tiktoken make different numbers of tokens of the same texts")
    result = compared(machine, product, reference, REPETITIONS)
    rates = [timed(machine, on_all_cores)["per_second"] for _ in range(REPETITIONS)]
    return result | {"reference_on_all_threads_tokens_per_second": statistics.median(rates)}


def _prepared(tokens: int, workers: int) -> dict[str, Any]:
    """Prepare a corpus in a process of its own, as the command line does."""
    data = {
        "name": "synthetic",
        "corpus": {"kind": "folder", "path": "corpus", "text_field": "text", "unit_field": None},
        "val_documents": HELD_OUT_DOCUMENTS,
        "test_documents": HELD_OUT_DOCUMENTS,
        "workers": workers,
    }
    held_out = {"val_documents": HELD_OUT_DOCUMENTS, "test_documents": HELD_OUT_DOCUMENTS}
    settings = settings_with({"data": data, "scoring": held_out})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("corpus", "config"):
            (root / name).mkdir()
        with open(root / "corpus" / "text.jsonl", "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"text": text}) + "\n" for text in documents(tokens))
        path = root / "config" / "config.yaml"
        path.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-c", PREPARE, str(path)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        meta = json.loads((root / "data" / "synthetic" / "meta.json").read_text(encoding="utf-8"))
        text_bytes = (root / "corpus" / "text.jsonl").stat().st_size
    measured = json.loads(output)
    kept = sum(split["tokens"] for split in meta["splits"].values())
    read = kept * meta["documents"]["read"] / meta["documents"]["kept"]  # copies are tokenized, too
    cpu_seconds = measured["own_cpu_seconds"] + measured["workers_cpu_seconds"]
    return measured | {
        "tokens": kept,
        "documents": meta["documents"],
        "text_bytes": text_bytes,
        "tokens_per_second": read / measured["seconds"],
        "tokens_per_cpu_second": read / cpu_seconds,
    }


def documents(tokens: int) -> Iterator[str]:
    """Texts of about this number of tokens together, copies not counted; the same ones for the same number."""
    count = max(4 * HELD_OUT_DOCUMENTS, round(tokens / OPENWEBTEXT_MEAN_TOKENS / (1.0 - 1.0 / COPY_EVERY)))
    for index in range(count):
        # An even index is never that of a copy.
        yield document_text(index // 4 * 2 if index % COPY_EVERY == COPY_EVERY - 1 else index)


def document_text(index: int) -> str:
    lines = _lines()
    rng = generator("benchmark text", index)
    mean = CHARACTERS_PER_TOKEN * OPENWEBTEXT_MEAN_TOKENS / np.mean([len(line) + 1 for line in lines[:1000]])
    count = int(mean * rng.lognormal(-(LENGTH_SIGMA**2) / 2, LENGTH_SIGMA)) + 1
    return "\n".join(lines[i] for i in rng.integers(len(lines), size=count))


@functools.cache
def _lines() -> list[str]:
    from pydoc_data import topics

    return [line.strip() for text in topics.topics.values() for line in text.splitlines() if line.strip()]
