"""The workflow on toy jobs: the real rules and profiles, a `sublora` that writes one line per file, and stub scripts.

Snakemake runs in a process forked from one that has it imported already, which saves a second a call.
"""

import dataclasses
import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from sublora.config import load_settings

REPOSITORY = Path(__file__).resolve().parents[2]
TIME_LIMIT_SECONDS = 600

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("snakemake.cli", "snakemake.workflow", "snakemake.storage", "snakemake.report.html_reporter"),
        *("jsonschema", "nbformat", "packaging.version", "pandas", "platformdirs", "smart_open", "snakemake.profiles"),
        *("snakemake_executor_plugin_slurm", "sublora.config", "sublora.runs.starts"),
    ]
)

FAKE_SUBLORA = """#!/bin/bash
# Writes what the real command writes. FAIL names a run whose training dies; DATA_CONTENT is what the corpus holds,
# BASE_CONTENT what the base's training gives.
set -eu
echo "sublora $*" >> calls.txt
stage=$1; shift
folder=
settings=
while [ $# -gt 0 ]; do
  case $1 in
    --config) test -f "$2" || { echo "no settings file $2"; exit 1; }; settings=$2; shift ;;
    --out) folder=$2; shift ;;
    --documents) documents_only=1 ;;
    --*) shift ;;
    *) folder=$1 ;;
  esac
  shift
done
home=$(dirname "$(dirname "${settings:-config/config.yaml}")") # of data/ and results/, as for the real command
write() { for name in "$@"; do echo "toy $name" > "$folder/$name"; done; }
key() { awk -v section="$1:" -v key="$2:" '/^[a-z]/ { at = $1 } at == section && $1 == key { print $2 }' "$settings"; }
case $stage in
  prepare)
    for name in $(key base name) $(key data name); do
      folder=$home/data/$name
      mkdir -p $folder
      write train.bin val.bin test.bin eot_indices.npy doc_lengths.npy source_ids.npy
      write unit_starts_train.npy unit_starts_val.npy unit_starts_test.npy
      echo "${DATA_CONTENT:-first}" > $folder/meta.json
    done ;;
  base)
    if [ "$(key base kind)" = trained ]; then test -f "$home/data/$(key base name)/train.bin"; fi
    mkdir -p "$folder"
    write base.safetensors
    echo "${BASE_CONTENT:-first}" > "$folder/base.json" ;;
  scales)
    test -f "$home/data/$(key base name)/train.bin"
    test -f "$home/results/base/base.json"
    folder=$home/results
    write scales.json ;;
  yardsticks)
    test -f "$home/data/$(key data name)/train.bin"
    test "$(key base kind)" = random || test -f "$home/results/base/base.json"
    folder=$home/results
    mkdir -p "$folder"
    write yardsticks.json ;;
  duplicates)
    folder=$home/data/$(key data name)
    test -z "${documents_only:-}" && folder=$home/results
    write near_duplicates.json ;;
  train)
    test -f "$home/data/$(key data name)/train.bin"
    test "$(key base kind)" = random || test -f "$home/results/base/base.json"
    if [ "$(basename "$folder")" = "${FAIL:-}" ]; then
      mkdir -p "$folder/state"
      echo "step 7" > "$folder/state/state.pt"
      echo "half" > "$folder/best_ckpt.pt"
      echo "loading"
      echo "step 8: the loss is not finite"
      exit 1
    fi
    write best_ckpt.pt metrics.csv gating_trace.csv ;;
  score) test -f "$folder/best_ckpt.pt"; write certificate.bin losses.npz ;;
  bound) test -f "$folder/losses.npz"; write bounds.json bounds_metrics.pt ;;
esac
"""

STUB_SCRIPT = """from pathlib import Path

for path in snakemake.output:
    Path(path).write_text("toy")
"""

SMALL_GRID = {"budgets": [40, 60], "allocations": ["uniform", "fixed-0.2", "learned"], "seeds": [1]}
SMALL_GRID_RUNS = 6


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call of Snakemake printed and returned."""

    exit_code: int
    text: str

    @property
    def jobs(self) -> dict[str, int]:
        """Number of jobs a rule, from the table that Snakemake prints; empty if there was nothing to do."""
        table = re.search(r"^Job stats:\n.*\n-.*\n((?:\S+ +\d+\n)+)", self.text, re.MULTILINE)
        rows = (line.split() for line in table[1].splitlines()) if table else ()
        return {rule: int(count) for rule, count in rows if rule != "total"}

    @property
    def message(self) -> list[str]:
        """The last lines, without Snakemake's notes about profiles and about settings files that were given."""
        notes = ("Using profiles", "Using workflow specific profile", "Config file ")
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith(notes)]


@dataclasses.dataclass(frozen=True)
class Toy:
    """A working copy of the workflow in `root`."""

    root: Path

    @classmethod
    def build(cls, root: Path) -> "Toy":
        """Copy what Snakemake reads; config/config.yaml is the demo's with a small grid."""
        for name in ("workflow", "profiles", "demo/config"):
            shutil.copytree(REPOSITORY / name, root / name)
        for kind, suffix, text in (("scripts", ".py", STUB_SCRIPT), ("report", ".rst", "toy\n")):
            for path in (root / "workflow" / kind).glob(f"*{suffix}"):
                path.write_text(text)
        toy = cls(root)
        toy.add_command("sublora", FAKE_SUBLORA)
        toy.write_settings(grid=SMALL_GRID)
        return toy

    def copy(self, root: Path) -> "Toy":
        """A copy with the same modification times, so that a finished workflow is finished there, too."""
        shutil.copytree(self.root, root, symlinks=True)
        return Toy(root)

    def add_command(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def write_settings(self, path: str = "config/config.yaml", **sections: dict[str, Any]) -> None:
        """The demo's settings on a random base, networks not trained for the code, some keys of sections changed."""
        values = yaml.safe_load((self.root / "demo/config/config.yaml").read_text()) | {"base": {"kind": "random"}}
        values["scoring"]["anchor"] = "guessing"  # for tests that put another base in
        values["message"]["quantizer"] = "plain"
        del values["subspace"]  # scales, which only a trained base has
        corpus = {"kind": "docstrings", "packages": ["stdlib"]}
        values["data"] |= {"name": "docstrings", "corpus": corpus, "near_duplicates": False}
        for section, keys in sections.items():
            values[section] = values.get(section, {}) | keys
        self.write(path, yaml.safe_dump(values))

    @property
    def settings(self) -> dict[str, Any]:
        return load_settings(self.root / "config/config.yaml").model_dump(mode="json")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    @property
    def calls(self) -> list[str]:
        """The commands that jobs have run so far."""
        path = self.root / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    def snakemake(
        self,
        *arguments: str,
        numerics: dict[str, int] | None = None,
        units_version: int | None = None,
        **environment: str,
    ) -> Outcome:
        """Run Snakemake here; `numerics` and `units_version` change versions, `environment` is added to this one's."""
        log = self.root / "snakemake.txt"
        variables = os.environ | {"PATH": f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"} | environment
        versions = (numerics or {}, units_version)
        process = CONTEXT.Process(target=_run, args=(list(arguments), self.root, variables, log, versions))
        process.start()
        process.join(TIME_LIMIT_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"snakemake {' '.join(arguments)} took longer than {TIME_LIMIT_SECONDS} s")
        return Outcome(process.exitcode, log.read_text())

    def plan(self, *arguments: str, **options: Any) -> dict[str, int]:
        """Jobs a rule that Snakemake would run, the rule all left out."""
        outcome = self.snakemake("--dry-run", *arguments, **options)
        assert outcome.exit_code == 0, outcome.text
        return {rule: count for rule, count in outcome.jobs.items() if rule != "all"}


def _run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    log: Path,
    changed: tuple[dict[str, int], int | None],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "wb") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    from snakemake.cli import main
    from snakemake.script import ScriptBase

    from sublora.system import versions

    # A shell does what a stub does: a Python for each would take most of the time of these tests.
    run_script = ScriptBase.evaluate

    def evaluate(script: ScriptBase, edit: bool = False) -> None:
        if script.source == STUB_SCRIPT:
            script._execute_cmd("printf toy | tee {output:q} > /dev/null", output=script.output)
        else:
            run_script(script, edit)

    ScriptBase.evaluate = evaluate

    numerics, units_version = changed
    versions.NUMERICS_VERSIONS.update(numerics)
    if units_version is not None:
        versions.UNITS_VERSION = units_version
    sys.argv = ["snakemake", *arguments]
    main(arguments)
