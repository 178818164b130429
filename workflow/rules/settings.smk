"""The settings in force, the grid that they span, and what the rules share.

`workflow` is Snakemake's own object. An attribute that its documentation does not name is used only where no public
way tells the same; the comment beside it says what it tells.
"""

import functools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import validate

from sublora.config import (
    load_settings,
    parse_settings,
    read_values,
    root_of,
    stage_settings,
    with_text_dates,
    with_typed_overrides,
    write_resolved,
)
from sublora.system.errors import UserError
from sublora.system.versions import (
    LIBRARY_VARIABLE,
    NUMERICS_VERSIONS,
    SCALES_FORMAT,
    UNITS_VERSION,
    library_folder,
)


def stop(message):
    """End with one line. (A WorkflowError adds a line for each function of the workflow that it passed through.)"""
    logger.error(message)
    raise SystemExit(1)


def is_module():
    # `modifier`: whether another workflow uses this one, and below which prefix. A module is told neither.
    return not workflow.modifier.is_main_snakefile()


def is_main_process():
    # `is_main_process`: a job runs this file as well, with the same arguments except those that are internal.
    return workflow.is_main_process


def settings_files():
    # `configfiles`: `config` holds what the files say, not which files they were.
    return [Path(os.path.relpath(path)) for path in workflow.configfiles]


def overrides():
    # `config_settings`: what --config changed; in `config` it can no longer be told from what the files say.
    return workflow.config_settings.config


def executor():
    """What the executor says of itself, None where no job will run (--dag, --lint, --unlock)."""
    # `executor_plugin`: which one was chosen; `onstart`, the public place, is not called for a module.
    return workflow.executor_plugin and workflow.executor_plugin.common_settings


def settings_source():
    """What the settings come from, in words; stops if a settings file was given that belongs to another folder."""
    if is_module():
        return "the config of the module"
    for path in settings_files():
        if not root_of(path).samefile(Path.cwd()):
            stop(
                f"{path}: its data/ and results/ lie in {root_of(path)}, the folder above that of the file, but "
                f"Snakemake works in {Path.cwd()}; add --directory {root_of(path)}, or put the file into config/ here"
            )
    return " with ".join([*map(str, settings_files()), *(f"--config {key}" for key in overrides())])


def resolved_settings():
    """(settings, what they come from). Jobs take those that the main process resolved, whatever was edited since."""
    if not is_main_process() and os.path.exists(SETTINGS_FILE):
        return load_settings(SETTINGS_FILE), SETTINGS_FILE
    source = settings_source()
    if not is_module() and len(settings_files()) == 1 and not overrides():
        return load_settings(settings_files()[0]), source
    for path in settings_files():
        read_values(path)  # refuses what Snakemake's own reader lets pass: a key given twice, 042 for 34
    config.update(with_typed_overrides(config, overrides()))
    return parse_settings(config, source), source


# As a module with a prefix the workflow has its data/, results/ and logs/ below that folder.
SETTINGS_FILE = str(workflow.modifier.modify_path("results/settings.yaml"))
try:
    SETTINGS, SETTINGS_SOURCE = resolved_settings()
except UserError as error:
    stop(str(error))
# `set_default`: SETTINGS have the defaults; Snakemake would mix those of all kinds of a base.
validate(with_text_dates(config), "../schemas/config.schema.json", set_default=False)

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


wildcard_constraints:
    **{
        key: "|".join(dict.fromkeys(re.escape(str(getattr(run, key))) for run in RUNS))
        for key in ("budget", "allocation", "seed", "trained", "size")
    },


# Jobs check that they run the library that this process runs. A container has its own.
if workflow.deployment_settings and DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    os.environ.pop(LIBRARY_VARIABLE, None)
else:
    os.environ[LIBRARY_VARIABLE] = library_folder()

# Jupyter names a backend in which no job can draw.
os.environ.update(MPLBACKEND="Agg")

# Jobs call `sublora`; with .venv/bin/snakemake and no activated environment it is found beside this interpreter.
if shutil.which("sublora") is None:
    os.environ.update(PATH=os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]))


# Before a job's command. Snakemake deletes a job's log before it runs the job again: a second name,
# logs/.../RUN.1.log for the first start, keeps it, however the start ends (on a file system with hard links). In a SLURM
# job SIGTERM only announces the end (sublora/system/signals.py): the shell must not die of it while its command goes on.
# Data dated in the future by this machine's clock stop the job here: Snakemake would delete its outputs at the end.
DATED = [f"data/{name}/meta.json" for name in (SETTINGS.data.name, getattr(SETTINGS.base, "name", None)) if name]
DATED += ["results/base/base.json"]
START_JOB = """start_job() {
rm -f "$1"; : > "$1"; local n=1; while [ -e "${1%.log}.$n.log" ]; do n=$((n + 1)); done; ln "$1" "${1%.log}.$n.log" || true
if [ -n "${SLURM_JOB_ID:-}" ]; then trap : TERM; fi
for file in FILES; do file="${1%%logs/*}$file"; if [ "$file" -nt "$1" ]; then echo "error: $file: dated in the \
future by the clock of this machine ($(uname -n)); set the clock that is wrong, then date the file now: touch $file" >> "$1"; exit 2; fi; done
}; """
shell.prefix(START_JOB.replace("FILES", shlex.join(DATED)).replace("{", "{{").replace("}", "}}"))


def files_of_runs(*names):
    """Return the paths of these files of every run."""
    return [f"results/runs/{run.name}/{name}" for run in RUNS for name in names]


def settings_of(stage):
    """Return the settings that a stage's numbers depend on, one line each: as params of a rule they decide what reruns.

    Snakemake compares them with those of the last run and prints the lines that differ.
    """
    lines = [f"{stage} numerics {NUMERICS_VERSIONS[stage]}"]
    if stage == "data" and SETTINGS.data.unit == "source":
        lines.append(f"units version {UNITS_VERSION}")
    for section, values in stage_settings(SETTINGS, stage).items():
        if isinstance(values, dict):
            lines += [f"{section}.{key}: {value}" for key, value in values.items()]
        else:
            lines.append(f"{section}: {values}")
    return lines


@functools.cache
def write_settings_once():
    write_resolved(SETTINGS, SETTINGS_FILE, origin=next(iter(settings_files()), None))


def settings_file(wildcards, input):
    """Return the file of the settings in force; the main process writes it when it is about to start the first job.

    (Before any job starts Snakemake formats its command, here or on its way to a scheduler; that happens in a module
    as well, where `onstart` is not called.) A function of `input`, so that a new name of the file reruns no job, and
    the file is no input: jobs rerun for the settings that reach them, never for its date.
    """
    if is_main_process() and executor() and not executor().dryrun_exec and not executor().touch_exec:
        write_settings_once()
    return SETTINGS_FILE


def run_folder(wildcards, output):
    return Path(output[0]).parent


def made_by(rows, files):
    """Return (what one job for these rows reads, by argument; the lines that tell it what to make); `files`: of all."""
    reads = dict.fromkeys(key for row in rows for key in row.reads.split())
    return {key: files[key] for key in reads}, [f"{row.function} {row.reads}".strip() for row in rows]


def caption_file(name):
    """Return a caption beside this workflow, also where another one uses it as a module; far away, a copy of it."""
    path = workflow.current_basedir.join(f"../report/{name}.rst").get_path_or_uri(secret_free=True)
    return local(os.path.relpath(path) if os.path.exists(path) else workflow.source_path(f"../report/{name}.rst"))
