"""What a user would otherwise pick, beside the same work here, in turns on one machine.

    python -m benchmarks.alternatives prepare [--documents 20000]
    python -m benchmarks.alternatives lora [--context 256] [--repetitions 3]

prepare: tokens of a .jsonl file as nanoGPT makes them (datasets.map with tiktoken, then one memory map), against
`sublora prepare`, which also drops duplicates, shuffles, splits and hashes. Each in a process of its own; both must
give the same documents. lora: one training step of GPT-2 small with adapters by peft on transformers' network, against
ours, both from the same weights and of the same rank, on attention and the head, in bfloat16 where the machine
multiplies it; memory is what a step adds. For scoring against a plain reference: `python -m benchmarks evaluation`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
WORKERS = 2


def nanogpt(corpus: Path, out: Path, workers: int) -> None:
    """Write all documents of a .jsonl file, each ended by end-of-text, as the tokens of one .bin file."""
    import datasets
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")

    def tokens_of(example: dict[str, Any]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(example["text"]), encoding.eot_token]
        return {"ids": ids, "len": len(ids)}

    datasets.disable_progress_bars()
    texts = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(out.parent / "cache"))
    tokenized = texts.map(tokens_of, remove_columns=["text"], num_proc=workers)
    total = int(np.sum(tokenized["len"], dtype=np.uint64))
    written = np.memmap(out, dtype=np.uint16, mode="w+", shape=(total,))
    place, shards = 0, min(1024, len(tokenized))
    for index in range(shards):
        shard = tokenized.shard(num_shards=shards, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"])
        written[place : place + len(ids)] = ids
        place += len(ids)
    written.flush()


def sublora(settings_file: Path) -> None:
    """Do what `sublora prepare` does."""
    from sublora import config
    from sublora.data.prepare import prepare_dataset

    prepare_dataset(config.load_settings(settings_file).data, config.root_of(settings_file))


def compare_prepare(documents: int) -> dict[str, Any]:
    """Return CPU seconds of both ways; RuntimeError unless they give the same documents."""
    from benchmarks.data import document_text, load_vocabulary
    from benchmarks.synthetic import settings_with
    from sublora.config import write_resolved

    load_vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus, settings_file = root / "corpus" / "text.jsonl", root / "config" / "config.yaml"
        corpus.parent.mkdir()
        with open(corpus, "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"text": document_text(index)}) + "\n" for index in range(documents))
        data = {
            "name": "prepared",
            "corpus": {"kind": "folder", "path": "corpus", "text_field": "text", "unit_field": None},
            "val_documents": 20,
            "test_documents": 20,
            "workers": WORKERS,
            "min_tokens": 1,
            "min_characters": 1,
        }
        held_out = {"val_documents": 20, "test_documents": 20}
        write_resolved(settings_with({"data": data, "scoring": held_out}), settings_file)
        theirs = root / "nanogpt.bin"
        seconds = {
            "nanogpt": _cpu_seconds(f"nanogpt(Path({str(corpus)!r}), Path({str(theirs)!r}), {WORKERS})"),
            "sublora": _cpu_seconds(f"sublora(Path({str(settings_file)!r}))"),
        }
        ours = [root / "data" / "prepared" / f"{split}.bin" for split in ("train", "val", "test")]
        if documents_of([theirs]) != documents_of(ours):
            raise RuntimeError("the two ways do not give the same documents")
        tokens = theirs.stat().st_size // 2
    return {"documents": documents, "tokens": tokens, "cpu_seconds": seconds} | {
        "ratio_of_cpu_time": seconds["nanogpt"] / seconds["sublora"]
    }


def _cpu_seconds(call: str) -> float:
    """Run a call of this module in a process of its own; return its CPU seconds, those of its workers included."""
    code = f"from pathlib import Path; from benchmarks.alternatives import *; {call}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{call}: failed")
    return usage.ru_utime + usage.ru_stime


def documents_of(paths: list[Path]) -> list[bytes]:
    """Return the tokens of all documents, sorted."""
    found = []
    for path in paths:
        tokens = np.fromfile(path, dtype=np.uint16)
        ends = np.flatnonzero(tokens == 50256)
        found += [part.tobytes() for part in np.split(tokens, ends + 1)[:-1]]
    return sorted(found)


def compare_lora(given: argparse.Namespace) -> dict[str, Any]:
    """Return rates, memory and ratios of a training step, ours against peft's."""
    import peft
    import torch
    import transformers

    from benchmarks.hardware import this_machine
    from benchmarks.huggingface import ALPHA, RANK, VOCABULARY, networks, train_once
    from benchmarks.timing import compared, timed

    machine = this_machine(given.threads)
    torch.set_num_threads(machine.threads)
    dtype = torch.bfloat16 if machine.dtype == "bfloat16" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        ours, _ = networks(Path(folder), given, machine)
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    lora = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    theirs = peft.get_peft_model(base, peft.LoraConfig(target_modules=["c_attn", "lm_head"], **lora)).to(machine.device)
    tokens = np.random.default_rng(1).integers(VOCABULARY, size=(given.sequences, given.context + 1))
    tokens_NT = torch.from_numpy(tokens).to(machine.device)

    def step_of_ours() -> int:
        return train_once(ours, tokens_NT)

    def step_of_peft() -> int:
        logits_NTV = theirs(tokens_NT[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1).float(), tokens_NT[:, 1:].flatten()).backward()
        theirs.zero_grad()
        return tokens_NT[:, 1:].numel()

    warmups = {"product": [timed(machine, step_of_ours)], "reference": [timed(machine, step_of_peft)]}
    return compared(machine, step_of_ours, step_of_peft, given.repetitions, warmups) | {"dtype": machine.dtype}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alternatives", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "lora"))
    for name, value in (("documents", 20_000), ("context", 256), ("sequences", 1), ("repetitions", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    results = compare_prepare(given.documents) if given.what == "prepare" else compare_lora(given)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
