"""The settings in force, the grid, and what rules share."""

import functools
import os
import re
import shutil
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod, SharedFSUsage
from snakemake.utils import validate

from sublora.config import (
    load_settings,
    parse_settings,
    root_of,
    stage_settings,
    with_typed_overrides,
    write_resolved,
)
from sublora.system.errors import UserError
from sublora.system.hardware import gpu_is_present
from sublora.runs.ownership import read_owner
from sublora.system.versions import NUMERICS_VERSIONS


def stop(message):
    """End with one line. (A WorkflowError adds a line for each function of the workflow that it passed through.)"""
    logger.error(message)
    raise SystemExit(1)


# Snakemake takes no container image from such a path.
WORKFLOW = Path(str(workflow.current_basedir)).parent
if any(character.isspace() for character in str(WORKFLOW)):
    stop(f"{WORKFLOW}: this path has a space in it, which Snakemake cannot work with; move the checkout")


def settings_source():
    """What the settings come from, in words; stops if a settings file was given that belongs to another folder."""
    if is_module():
        return "the config of the module"
    paths = [Path(os.path.relpath(path)) for path in workflow.configfiles]
    for path in paths:
        if root_of(path) != Path.cwd():
            stop(
                f"{path}: its data/ and results/ lie in {root_of(path)}, the folder above that of the file, but "
                f"Snakemake works in {Path.cwd()}; add --directory {root_of(path)}, or put the file into config/ here"
            )
    return " with ".join([*map(str, paths), *(f"--config {key}" for key in workflow.config_settings.config)])


def is_module():
    return not workflow.modifier.is_main_snakefile()


def resolved_settings():
    """(settings, what they come from). Jobs take those that the main process resolved, whatever was edited since."""
    if not workflow.is_main_process and os.path.exists(SETTINGS_FILE):
        return load_settings(SETTINGS_FILE), SETTINGS_FILE
    source = settings_source()
    if not is_module() and len(workflow.configfiles) == 1 and not workflow.config_settings.config:
        return load_settings(Path(os.path.relpath(workflow.configfiles[0]))), source
    config.update(with_typed_overrides(config, workflow.config_settings.config))
    return parse_settings(config, source), source


def refuse_runs_of_another_file():
    """Stop if a run here was trained from another settings file, with other settings: it would be trained again.

    After a change within one file, or under a new name, that is what is wanted.
    """
    files = [os.path.relpath(path) for path in workflow.configfiles[:1]]
    for run in SETTINGS.grid.runs():
        folder = Path("results/runs", run.name)
        try:
            owner = read_owner(folder)
        except UserError as error:
            stop(str(error))
        if owner is None or owner.settings_file in (None, *files) or not os.path.exists(owner.settings_file):
            continue
        difference = owner.difference(SETTINGS.for_run(run))
        if difference:
            stop(
                f"{folder}: a run of {owner.settings_file} ({difference}), and {SETTINGS_SOURCE} would train it again; "
                "put the second file into NAME/config/config.yaml and work in that folder: --directory NAME"
            )


def refuse_what_jobs_cannot_use():
    """Stop where files would not be shared, or the container is missing."""
    files, deployment = workflow.storage_settings, workflow.deployment_settings
    if files and (files.default_storage_provider or SharedFSUsage.INPUT_OUTPUT not in files.shared_fs_usage):
        stop(
            "a storage provider, or an executor without a shared file system: jobs need a file system that all machines "
            "share, since trainings go on from files that are no outputs; use one, without --default-storage-provider"
        )
    image = Path(workflow.basedir).parent / "sublora.sif"
    if deployment and DeploymentMethod.APPTAINER in deployment.deployment_method and not image.exists():
        stop(f"{image}: no such container; build it with: apptainer build {image.name} apptainer.def")


if workflow.modifier.path_modifier.modifies_prefixes:
    stop("module: replace_prefix would part data/ and results/ from each other; use prefix, which moves both")

# As a module with a prefix the workflow has its data/, results/ and logs/ below that folder.
SETTINGS_FILE = str(workflow.modifier.modify_path("results/settings.yaml"))
try:
    SETTINGS, SETTINGS_SOURCE = resolved_settings()
except UserError as error:
    stop(str(error))
validate(config, "../schemas/config.schema.json")
if workflow.is_main_process:
    refuse_what_jobs_cannot_use()
if workflow.is_main_process and not is_module():
    refuse_runs_of_another_file()

RUNS = SETTINGS.grid.runs()
# Name of a run's folder, with the wildcards that the grid has.
RUN = "d{budget}_{allocation}_seed{seed}"
RUN_OPTIONS = "--budget {wildcards.budget:q} --allocation {wildcards.allocation:q} --seed {wildcards.seed:q}"
for compared in ("trained", "size"):
    if any(getattr(run, compared) for run in RUNS):
        RUN, RUN_OPTIONS = f"{{{compared}}}_{RUN}", f"--{compared} {{wildcards.{compared}:q}} {RUN_OPTIONS}"
COMPARES_NETWORKS = SETTINGS.grid.compares_networks

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


# Before a job's command. Snakemake deletes a job's log before it runs the job again: a second name,
# logs/.../RUN.1.log for the first start, keeps it, however the start ends (on a file system with hard links). In a SLURM
# job SIGTERM only announces the end (sublora/system/signals.py): the shell must not die of it while its command goes on.
shell.prefix(
    'start_job() {{ rm -f "$1"; : > "$1"; local n=1; while [ -e "${{1%.log}}.$n.log" ]; do n=$((n + 1)); done; '
    'ln "$1" "${{1%.log}}.$n.log" || true; if [ -n "${{SLURM_JOB_ID:-}}" ]; then trap : TERM; fi; }}; '
)


wildcard_constraints:
    **{
        key: "|".join(dict.fromkeys(re.escape(str(getattr(run, key))) for run in RUNS))
        for key in ("budget", "allocation", "seed", "trained", "size")
    },


def files_of_runs(*names):
    """These files of every run."""
    return [f"results/runs/{run.name}/{name}" for run in RUNS for name in names]


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


@functools.cache
def write_settings_once():
    write_resolved(SETTINGS, SETTINGS_FILE, origin=next(iter(workflow.configfiles), None))


def settings_file(wildcards, input):
    """The file of the settings in force, which the main process writes when the first job is planned in earnest.

    (Before any job starts Snakemake formats its command, here or on its way to a scheduler; that happens in a module
    as well, where `onstart` does not.) A function of `input`, so that the name of the file is nothing that could rerun
    a job, and the file is no input: jobs rerun for the settings that reach them, never for its date.
    """
    runs_jobs = workflow.executor_plugin is not None and not workflow.dryrun and not workflow.touch
    if workflow.is_main_process and runs_jobs:
        write_settings_once()
    return SETTINGS_FILE


def run_folder(wildcards, output):
    return Path(output[0]).parent


def caption_file(name):
    """A caption, beside this workflow also where another one uses it as a module; a copy of it if that is far away."""
    path = workflow.current_basedir.join(f"../report/{name}.rst").get_path_or_uri(secret_free=True)
    return local(os.path.relpath(path) if os.path.exists(path) else workflow.source_path(f"../report/{name}.rst"))


def require_gpu():
    """Stop before the first job if networks would run on this machine and need a GPU that it does not have.

    Jobs of an executor such as slurm run elsewhere, and figures or bounds need none.
    """
    if not NEEDS_GPU or not workflow.local_exec or workflow.touch:
        return
    pending = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if pending & {"base", "train", "score", "yardsticks", "verify_run"} and not gpu_is_present():
        stop(
            f"{SETTINGS_SOURCE}: compute.device is cuda and this machine ({os.uname().nodename}) has no usable GPU; "
            "nothing was run. "
            "Run on a cluster (snakemake --profile profiles/slurm), or the demo (make demo)"
        )


def print_last_log_lines():
    """Beside each failed job, the line of its log that says why."""
    for job in sorted(workflow.scheduler.failed, key=str):
        for path in map(Path, job.log):
            print(f"{path}: {last_line(path)}", file=sys.stderr)


def last_line(path):
    """Of a log. Snakemake may leave an empty one of a job that never ran; one that ran kept a second name of its log."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), None)
    if last is None and path.with_suffix(".1.log").exists():
        return "(empty log: the job was ended before it said anything)"
    return last or "(no log: the job never started; what kept it from that is said above)"
