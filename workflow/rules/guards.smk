"""What stops the workflow before its first job, and what it says when a job has failed."""

import tempfile

from snakemake.settings.types import SharedFSUsage

from sublora.runs.starts import AFTER_TRAINING, MAKE_RUN_AGAIN, read_owner, run_difference
from sublora.system.device import gpu_is_present

WORKFLOW = Path(str(workflow.current_basedir)).parent
RULES_ON_GPU = {"base", "train", "score", "yardsticks", "verify_run"}
CLOCKS_MAY_DIFFER_SECONDS = 2


def refuse_paths_that_part_or_break():
    """Stop where the files of one run would lie apart, or Snakemake cannot read the path of the workflow."""
    # `modifier`: how the parent of a module changes paths; `path_modifier` tells the two ways apart.
    if workflow.modifier.path_modifier.modifies_prefixes:
        stop("module: replace_prefix would part data/ and results/ from each other; use prefix, which moves both")
    # Snakemake takes no container image from such a path.
    if any(character.isspace() for character in str(WORKFLOW)):
        stop(f"{WORKFLOW}: this path has a space in it, which Snakemake cannot work with; move the checkout")


def refuse_what_jobs_cannot_use():
    """Stop where files would not be shared, or the container is missing."""
    # `storage_settings`, `deployment_settings`: options of the command line, which no public object holds.
    files, deployment = workflow.storage_settings, workflow.deployment_settings
    if files and (files.default_storage_provider or SharedFSUsage.INPUT_OUTPUT not in files.shared_fs_usage):
        stop(
            "a storage provider, or an executor without a shared file system: jobs need a file system that all machines "
            "share, since trainings go on from files that are no outputs; use one, without --default-storage-provider"
        )
    image = WORKFLOW.parent / "sublora.sif"
    if deployment and DeploymentMethod.APPTAINER in deployment.deployment_method and not image.exists():
        stop(f"{image}: no such container; build it with: apptainer build {image.name} apptainer.def")


def refuse_runs_of_another_file():
    """Stop if a run here was trained from another settings file, with other settings: it would be trained again.

    After a change within one file, or under a new name, that is what is wanted.
    """
    files = [str(path) for path in settings_files()[:1]]
    for run in RUNS:
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


def refuse_runs_of_other_settings():
    """Stop before a run that was made with other settings is kept among those of the settings in force.

    Jobs that are about to run replace such a run. Snakemake keeps it where its records are missing, where it was told
    to go by dates alone, and with --touch, which takes every file that is there for up to date.
    """
    # `dag`: which jobs make the files that are asked for, and which of those are about to run.
    kept = {}
    for job in workflow.dag.jobs:
        if job.rule.name in AFTER_TRAINING and job.output and (executor().touch_exec or not workflow.dag.needrun(job)):
            kept.setdefault(str(run_folder(None, job.output)), set()).add(job.rule.name)
    for run in RUNS:
        folder = Path("results/runs", run.name)
        try:
            found = str(folder) in kept and run_difference(folder, SETTINGS.for_run(run), kept[str(folder)])
        except UserError:
            continue  # a damaged file stops the job that reads it
        if found:
            stop(f"{folder}: made with other settings than those of {SETTINGS_SOURCE} ({found}); {MAKE_RUN_AGAIN}")


def refuse_inputs_from_the_future():
    """Stop if a file is dated later than one that is written now, by another machine's clock or a copy.

    Snakemake deletes outputs that are older than an input, hours of training later, and then runs the job again.
    """
    inputs = {str(path) for job in workflow.dag.needrun_jobs() for path in job.input if os.path.exists(path)}
    folder = "results" if os.path.isdir("results") else ".snakemake"
    with tempfile.NamedTemporaryFile(dir=folder) as written_now:
        now = os.stat(written_now.name).st_mtime
    ahead = {path: os.stat(path).st_mtime - now for path in inputs}
    late = sorted(path for path in ahead if ahead[path] > CLOCKS_MAY_DIFFER_SECONDS)
    if late:
        others = f" and {len(late) - 1} more files" if len(late) > 1 else ""
        stop(
            f"{late[0]}{others}: dated {ahead[late[0]]:.0f} s in the future, by the clock of this machine "
            f"({os.uname().nodename}); set the clock that is wrong, then date them now: touch {' '.join(late[:4])}"
            f"{' ...' if len(late) > 4 else ''}"
        )


def require_gpu():
    """Stop before the first job if networks would run on this machine and need a GPU that it does not have.

    Jobs of an executor such as slurm run elsewhere, and figures or bounds need none.
    """
    if SETTINGS.compute.device != "cuda" or not executor().local_exec or executor().touch_exec:
        return
    # `dag`: which jobs are about to run; hooks are not told.
    pending = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if pending & RULES_ON_GPU and not gpu_is_present():
        stop(
            f"{SETTINGS_SOURCE}: compute.device is cuda and this machine ({os.uname().nodename}) has no usable GPU; "
            "nothing was run. "
            "Run on a cluster (snakemake --profile profiles/slurm), or the demo (make demo)"
        )


def print_last_log_lines():
    """Print, for each failed job, the line of its log that says why."""
    # `scheduler`: which jobs failed; the variable `log` of the hook is the path of Snakemake's own log.
    for job in sorted(workflow.scheduler.failed, key=str):
        for path in map(Path, job.log):
            print(f"{path}: {last_line(path, job.rule.name)}", file=sys.stderr)


def last_line(path, name):
    """Return the last line of a log that is not blank, or a remark in parentheses; `name`: of the rule.

    Snakemake may leave an empty log of a job that never ran. A job of a network that ran kept its log under a second
    name; of other jobs an empty log does not tell.
    """
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), None)
    if last is None and path.with_suffix(".1.log").exists():
        return "(empty log: the job was ended before it said anything)"
    if last is None and path.exists() and name not in RULES_ON_GPU:
        return "(empty log: the job never started, or ended before it said anything; see above)"
    return last or "(no log: the job never started; the reason is printed above)"


refuse_paths_that_part_or_break()
if is_main_process():
    refuse_what_jobs_cannot_use()
if is_main_process() and not is_module():
    refuse_runs_of_another_file()


onstart:
    refuse_runs_of_other_settings()
    refuse_inputs_from_the_future()
    require_gpu()


onerror:
    print_last_log_lines()
