"""The same runs by two versions of this repository, compared byte for byte: `make compare REF=<commit>`.

A refactoring must leave every trained weight, payload and loss as it was. Both versions run on this machine and read
the same settings: REF, the older of the two, resolves its own demo, made small, and writes it with every key, one file
for each variant. A demo or a default that changed since REF therefore changes nothing here; a key that REF does not
have yet is at its default in this folder. A file that this folder cannot read, because a key is gone or takes other
values, ends the comparison with the message about it.

The variants: all arms of the grid with both quantizers, and the rarer choices (random B, gates of their own part of w,
dropout). Exit status 0: equal; 1: something differs; 2: a version could not run.
"""

import argparse
import hashlib
import json
import os
import shutil
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
    "message": {"extra_bits": 0.0},
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


def write_settings(repository: Path, folder: Path, device: str) -> list[str]:
    """Write the settings of each variant into the folder, as `sublora` of this process resolves them: with every key.

    They are the version's own demo on a random base, with the small values and the variant's changes put in. Returned
    are the keys to change that this version does not know; they are left out, so that older versions can be compared.
    """
    from sublora.config import load_settings

    unknown = set()
    for variant, changes in VARIANTS.items():
        # The loader resolves the demo first, so that a key is there whether the file gives it or a default does.
        values = load_settings(repository / "demo/config/config.yaml").model_dump(mode="json")
        values["base"] = {"kind": "random"}
        values["subspace"].pop("scale", None)  # which only a trained base has
        if "sources" in values["scoring"]:
            values["scoring"]["sources"] = None  # the documents below have none
        values["compute"] |= {"device": device}
        for part in (SMALL, changes):
            for section, keys in part.items():
                known = values.get(section, {})
                unknown |= {f"{section}.{key}" for key in keys if key not in known}
                known |= {key: value for key, value in keys.items() if key in known}
        path = folder / f"{variant}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        # Once more, for the defaults inside what was put in.
        path.write_text(yaml.safe_dump(load_settings(path).model_dump(mode="json")), encoding="utf-8")
    return sorted(unknown)


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


def collect(settings: Path) -> dict[str, dict[str, str]]:
    """Train, score and bound every run of the settings files in a folder; returns the facts of each run."""
    from sublora.cli import app

    def run(*arguments: object) -> None:
        app([str(argument) for argument in arguments], standalone_mode=False)

    facts = {}
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config" / "config.yaml"
            path.parent.mkdir()
            shutil.copy(settings / f"{variant}.yaml", path)
            run("prepare", "--config", path)
            grid = yaml.safe_load(path.read_text(encoding="utf-8"))["grid"]
            for budget in grid["budgets"]:
                for allocation in grid["allocations"]:
                    out = Path(folder) / "results/runs" / f"d{budget}_{allocation}_seed{grid['seeds'][0]}"
                    arm = "--budget", budget, "--allocation", allocation, "--seed", grid["seeds"][0]
                    run("train", "--config", path, *arm, "--out", out)
                    run("score", out, "--config", path)
                    run("bound", out, "--config", path)
                    facts[f"{variant}: {out.name}"] = facts_of_run(out)
    return facts


def work(task: str, repository: Path, settings: Path, device: str) -> Any:
    """Do one task with the `sublora` that this process imports, which must be the repository's."""
    import sublora

    if not Path(sublora.__file__).is_relative_to(repository.resolve()):
        raise RuntimeError(f"{sublora.__file__} was imported instead of the version in {repository}")
    return write_settings(repository, settings, device) if task == "settings" else collect(settings)


def in_version(task: str, repository: Path, settings: Path, device: str) -> Any:
    """`work` in a process of its own that imports the `sublora` of this repository; exit status 2 if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        names = [task, str(repository), str(settings), str(result)]
        command = [sys.executable, __file__, "--task", *names, "--device", device]
        environment = os.environ | {"PYTHONPATH": str(repository)}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        if done.returncode:
            print(f"{task} by the version in {repository}:\n{done.stderr.rstrip()}", file=sys.stderr)
            sys.exit(2)
        return json.loads(result.read_text(encoding="utf-8"))


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
    parser.add_argument("--task", nargs=4, metavar=("TASK", "FOLDER", "SETTINGS", "JSON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, (repository, settings, result) = arguments.task[0], map(Path, arguments.task[1:])
        result.write_text(json.dumps(work(task, repository, settings, arguments.device)), encoding="utf-8")
        return
    if not arguments.reference:
        parser.error("give the commit to compare with: make compare REF=<commit>")
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        there, settings = Path(folder) / "reference", Path(folder) / "settings"
        settings.mkdir()
        git = ["git", "-C", str(here), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(there), arguments.reference], check=True)
        try:
            unknown = in_version("settings", there, settings, arguments.device)
            before = in_version("runs", there, settings, arguments.device)
            after = in_version("runs", here, settings, arguments.device)
        finally:
            subprocess.run([*git, "remove", "--force", str(there)], check=True)
    if unknown:
        print(f"settings that {arguments.reference} does not know, at their defaults in both: {', '.join(unknown)}")
    equal = compare(before, after)
    print(f"{arguments.reference} and this folder, on {arguments.device}: {'equal' if equal else 'DIFFERENT'}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
