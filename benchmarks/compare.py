"""The same runs by two versions of this repository, compared byte for byte: `make compare REF=<commit>`.

A refactoring must leave every trained weight, payload and loss as it was. Both versions run on this machine, each with
the settings of its own demo, made small: all arms of the grid, both quantizers, and the rarer choices (random B, gates
of their own part of w, dropout). Exit status 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

SMALL: dict[str, dict[str, Any]] = {
    "grid": {"budgets": [40, 60], "seeds": [7]},
    "data": {
        "name": "markov",
        "corpus": {
            "kind": "markov",
            "symbols": 6,
            "concentration": 1.0,
            "documents": 400,
            "min_length": 40,
            "max_length": 100,
            "seed": 3,
        },
        "min_characters": 1,
        "max_characters": None,
        "min_tokens": 1,
        "val_documents": 40,
        "test_documents": 40,
        "workers": 1,
        "near_duplicates": False,
    },
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 32, "init_std": 0.05},
    "lora": {"rank": 2, "alpha": 8.0},
    "training": {
        "steps": 30,
        "tokens_per_step": 256,
        "micro_batch_sequences": 4,
        "eval_interval_steps": 10,
        "eval_sequences": 16,
        "save_interval_steps": 10,
    },
    "scoring": {"sliding_window": 20, "documents": 60, "val_documents": 30, "test_documents": 30},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"message": {"quantizer": "plain"}},
    "entropy": {"message": {"quantizer": "entropy"}},
    "plain, random B, dropout": {
        "message": {"quantizer": "plain"},
        "lora": {"init": "both_random", "dropout": 0.1},
    },
    "entropy, random B, gates per layer": {
        "message": {"quantizer": "entropy"},
        "lora": {"init": "both_random"},
        "gating": {"sharing": "per_layer"},
    },
}
TIMING = {"tokens_per_second", "seconds"}
"""Columns of metrics.csv that no two trainings share."""
CERTIFICATE_HEADER = struct.Struct(">8sHI")


def settings_values(repository: Path, changes: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The demo's settings of a version of the repository, on a random base, with the small ones and the changes put in.

    The version's own loader resolves the file first, so that a key is there whether the file gives it or a default
    does. Also returned: the keys to change that this version does not know. They are left out, so that older versions
    can be compared.
    """
    from sublora.config import load_settings

    values = load_settings(repository / "demo/config/config.yaml").model_dump(mode="json")
    values["base"] = {"kind": "random"}
    if "sources" in values["scoring"]:
        values["scoring"]["sources"] = None  # the documents below have none
    unknown = []
    for part in (SMALL, changes):
        for section, keys in part.items():
            known = values.get(section, {})
            unknown += [f"{section}.{key}" for key in keys if key not in known]
            known |= {key: value for key, value in keys.items() if key in known}
    return values, unknown


def facts_of_run(folder: Path) -> dict[str, str]:
    """sha256 of everything a run's numbers are in: weights, payload, arrays of losses, history."""
    import torch

    facts = {}
    for name, value in sorted(torch.load(folder / "best_ckpt.pt", weights_only=True)["raw_model"].items()):
        facts[f"weights {name}"] = _sha256(value.numpy().tobytes())
    data = (folder / "certificate.bin").read_bytes()
    _, _, header_bytes = CERTIFICATE_HEADER.unpack_from(data)
    facts["payload"] = _sha256(data[CERTIFICATE_HEADER.size + header_bytes : -hashlib.sha256().digest_size])
    with np.load(folder / "losses.npz", allow_pickle=False) as losses:
        for name in sorted(losses.files):
            if losses[name].dtype.kind in "fi":
                facts[f"losses {name}"] = _sha256(losses[name].tobytes())
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name not in TIMING]
    facts["history"] = _sha256(json.dumps([[line[i] for i in kept] for line in lines]).encode())
    facts["gates"] = _sha256((folder / "gating_trace.csv").read_bytes())
    bounds = json.loads((folder / "bounds.json").read_text(encoding="utf-8"))
    facts["bound"] = repr(bounds["bound_value"])
    return facts


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def collect(repository: Path, device: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Facts of every run, by the `sublora` that this process imports, and the keys of SMALL that it does not know."""
    import sublora
    from sublora.cli import app

    if not Path(sublora.__file__).is_relative_to(repository.resolve()):
        raise RuntimeError(f"{sublora.__file__} was imported instead of the version in {repository}")

    def run(*arguments: object) -> None:
        app([str(argument) for argument in arguments], standalone_mode=False)

    facts, left_out = {}, set()
    for variant, changes in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config" / "config.yaml"
            path.parent.mkdir()
            values, unknown = settings_values(repository, changes)
            left_out |= set(unknown)
            values["compute"] = values["compute"] | {"device": device}
            path.write_text(yaml.safe_dump(values), encoding="utf-8")
            run("prepare", "--config", path)
            grid = values["grid"]
            for budget in grid["budgets"]:
                for allocation in grid["allocations"]:
                    out = Path(folder) / "results/runs" / f"d{budget}_{allocation}_seed{grid['seeds'][0]}"
                    arm = "--budget", budget, "--allocation", allocation, "--seed", grid["seeds"][0]
                    run("train", "--config", path, *arm, "--out", out)
                    run("score", out, "--config", path)
                    run("bound", out, "--config", path)
                    facts[f"{variant}: {out.name}"] = facts_of_run(out)
    return facts, sorted(left_out)


def run_version(repository: Path, device: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """`collect` in a process of its own that imports the `sublora` of this folder."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "facts.json"
        command = [sys.executable, __file__, "--collect", str(repository), str(result), "--device", device]
        environment = os.environ | {"PYTHONPATH": str(repository)}
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        facts, left_out = json.loads(result.read_text(encoding="utf-8"))
        return facts, left_out


def compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> bool:
    """Print a table with a row for each run; True if all facts are equal."""
    table = Table("run", "compared", "different")
    equal = before.keys() == after.keys()
    for run in before:
        theirs, ours = before[run], after.get(run, {})
        different = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
        equal &= not different
        table.add_row(run, str(len(theirs)), ", ".join(different) or "none")
    Console(width=160).print(table)
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", nargs="?", help="the commit to compare this folder with")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--collect", nargs=2, metavar=("FOLDER", "JSON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collect:
        repository, result = map(Path, arguments.collect)
        result.write_text(json.dumps(collect(repository, arguments.device)), encoding="utf-8")
        return
    if not arguments.reference:
        parser.error("give the commit to compare with: make compare REF=<commit>")
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "reference"
        git = ["git", "-C", str(here), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(there), arguments.reference], check=True)
        try:
            before, unknown_before = run_version(there, arguments.device)
            after, unknown_after = run_version(here, arguments.device)
        finally:
            subprocess.run([*git, "remove", "--force", str(there)], check=True)
    for version, unknown in ((arguments.reference, unknown_before), ("this folder", unknown_after)):
        if unknown:
            print(f"settings that {version} does not know, left at what it does without them: {', '.join(unknown)}")
    equal = compare(before, after)
    print(f"{arguments.reference} and this folder, on {arguments.device}: {'equal' if equal else 'DIFFERENT'}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
