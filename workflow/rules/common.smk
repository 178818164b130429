"""The settings in force, the grid, and what rules share."""

import os
import shutil
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import validate

from sublora.config import load_settings, root_of, stage_settings
from sublora.errors import UserError
from sublora.hardware import gpu_is_present
from sublora.versions import NUMERICS_VERSIONS


def stop(message):
    """End with one line. (A WorkflowError adds a line for each function of the workflow that it passed through.)"""
    logger.error(message)
    raise SystemExit(1)


# Snakemake takes no container image from such a path.
if any(character.isspace() for character in str(workflow.basedir)):
    stop(f"{workflow.basedir}: this path has a space in it, which Snakemake cannot work with; move the checkout")


def settings_in_force():
    """The settings file and its settings. Stops if they are wrong, or not those that jobs would see."""
    if workflow.config_settings.config:
        keys = ", ".join(workflow.config_settings.config)
        stop(
            f"--config {keys}: jobs read the settings file and would not see this; "
            "change a copy of config/config.yaml in config/ and give it with --configfile"
        )
    if len(workflow.configfiles) != 1:
        stop("--configfile: expected one settings file, which must be whole; they are not merged")
    path = Path(os.path.relpath(workflow.configfiles[0]))
    if root_of(path) != Path.cwd():
        stop(
            f"{path}: its data/ and results/ lie in {root_of(path)}, the folder above that of the file, but Snakemake "
            f"works in {Path.cwd()}; add --directory {root_of(path)}, or put the file into config/ here"
        )
    try:
        return path, load_settings(path)
    except UserError as error:
        stop(str(error))


SETTINGS_FILE, SETTINGS = settings_in_force()
validate(config, "../schemas/config.schema.json")

GRID = {
    "budget": SETTINGS.grid.budgets,
    "allocation": SETTINGS.grid.allocations,
    "seed": SETTINGS.grid.seeds,
}
ARMS = {key: GRID[key] for key in ("allocation", "seed")}
LEARNED_ARMS = {"allocation": [name for name in GRID["allocation"] if name == "learned"], "seed": GRID["seed"]}
HAS_GATES = bool(LEARNED_ARMS["allocation"])

DATA = f"data/{SETTINGS.data.name}"
# A random base follows from each run's seed; every other one is a file that all runs share.
HAS_BASE = SETTINGS.base.kind != "random"
TRAINS_BASE = SETTINGS.base.kind == "trained"
# base.json names the weights by their hash and alone decides whether a new base is another one.
BASE = {"base": "results/base/base.json", "base_weights": ancient("results/base/base.safetensors")} if HAS_BASE else {}
# Arrays that say where documents and units begin, or which source a document is from.
INDEX = ["eot_indices", "doc_lengths"]
if SETTINGS.data.unit == "source":
    INDEX += [f"unit_starts_{split}" for split in ("train", "val", "test")]
elif SETTINGS.data.knows_sources:
    INDEX += ["source_ids"]
NEEDS_GPU = SETTINGS.compute.device == "cuda"
# A training on several GPUs is a process for each. Schedulers such as SLURM read the resource `gpu`; locally, jobs
# share the GPUs by locks of their own.
GPUS_PER_TRAINING = SETTINGS.compute.gpus_per_training
LAUNCHER = (
    "sublora"
    if GPUS_PER_TRAINING == 1
    else f"torchrun --standalone --nproc-per-node={GPUS_PER_TRAINING} --no-python sublora"
)

# Jobs call `sublora`; with .venv/bin/snakemake and no activated environment it is found beside this interpreter.
if shutil.which("sublora") is None:
    os.environ.update(PATH=os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]))


wildcard_constraints:
    budget="|".join(map(str, GRID["budget"])),
    allocation="|".join(name.replace(".", r"\.") for name in GRID["allocation"]),
    seed="|".join(map(str, GRID["seed"])),


def settings_of(stage):
    """What a stage's numbers hang on, a line a setting: as parameters of a rule they decide what reruns.

    Snakemake compares them with those of the last run and prints the lines that differ.
    """
    lines = [f"{stage} numerics {NUMERICS_VERSIONS[stage]}"]
    for section, values in stage_settings(SETTINGS, stage).items():
        if isinstance(values, dict):
            lines += [f"{section}.{key}: {value}" for key, value in values.items()]
        else:
            lines.append(f"{section}: {values}")
    return lines


def settings_file(wildcards, input):
    """The settings file's name; a function of `input`, since a new name alone must not rerun a job."""
    return SETTINGS_FILE


def run_folder(wildcards, output):
    return Path(output[0]).parent


def require_gpu():
    """Stop before the first job if networks would run on this machine and need a GPU that it does not have.

    Jobs of an executor such as slurm run elsewhere, and figures or bounds need none.
    """
    if not NEEDS_GPU or not workflow.local_exec or workflow.touch:
        return
    pending = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if pending & {"base", "train", "score", "yardsticks", "verify_run"} and not gpu_is_present():
        stop(
            f"{SETTINGS_FILE}: compute.device is cuda and this machine has no usable GPU; nothing was run. "
            "Run on a cluster (snakemake --profile profiles/slurm), or the demo (make demo)"
        )


def print_last_log_lines():
    """Beside each failed job, the line of its log that says why."""
    for job in sorted(workflow.scheduler.failed, key=str):
        for path in map(Path, job.log):
            lines = path.read_text(errors="replace").split("\n") if path.exists() else []
            last = next((line for line in reversed(lines) if line.strip()), "(empty log)")
            print(f"{path}: {last}", file=sys.stderr)
