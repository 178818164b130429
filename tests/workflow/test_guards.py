"""Wrong input stops before any job, in one line; the profiles do what they say."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublora.config import load_settings
from sublora.runs.starts import write_owner
from workflow.toy import REPOSITORY, SMALL_GRID, SMALL_GRID_RUNS, Toy

NVIDIA_SMI = '#!/bin/sh\necho "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-0)"\n'
RETRIED = {
    "mem_mb": ["24000"] * 4,
    "runtime": ["720", "1440", "1440", "1440"],
    "slurm_extra": ["--signal=TERM@120" + begin for begin in ("", *(f" --begin=now+{s}" for s in (60, 120, 240)))],
}
NO_NVIDIA_SMI = "#!/bin/sh\nexit 9\n"


def assert_stops(toy: Toy, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = toy.snakemake(*arguments)
    assert outcome.exit_code == 1, outcome.text
    assert len(outcome.message) == 1, outcome.text
    assert re.search(complaint, outcome.message[0]), outcome.text
    assert toy.calls == []


@pytest.mark.parametrize(
    ("section", "keys", "complaint"),
    [
        ("training", {"learning_rat": 0.1}, r"did you mean 'training\.learning_rate'"),
        ("training", {"learning_rate": "5e-3"}, r"training\.learning_rate: .*5\.0e-03"),
        ("grid", {"allocations": ["fixed-1.5"]}, r"'fixed-1\.5' is not one of uniform, learned"),
        ("grid", {"budgets": [0]}, r"grid\.budgets\.0: .*at least 1"),
        ("grid", {"seeds": [1, 1]}, r"seeds holds a value twice"),
    ],
)
def test_wrong_settings_stop_in_one_line(toy: Toy, section: str, keys: dict[str, object], complaint: str) -> None:
    toy.write_settings(**{section: keys})
    assert_stops(toy, (), rf"^config/config\.yaml: .*{complaint}")


def test_a_part_of_the_settings_is_no_settings_file(toy: Toy) -> None:
    toy.write("config/part.yaml", "training:\n  steps: 7\n")
    assert_stops(toy, ("--configfile", "config/part.yaml"), r"^config/part\.yaml: key 'grid' is missing")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training=7", r"--config training: training: expected keys with values, found 7"),
        ("training={learning_rat: 0.1}", r"--config training: .*did you mean 'training\.learning_rate'"),
        ("training={steps: many}", r"training\.steps: .*found 'many'"),
        ("trainin={steps: 7}", r"unknown key 'trainin'; did you mean 'training'"),
    ],
)
def test_wrong_settings_on_the_command_line_stop_in_one_line(toy: Toy, override: str, complaint: str) -> None:
    assert_stops(toy, ("--config", override), rf"^config/config\.yaml with .*{complaint}")


def test_a_settings_file_of_another_folder_is_refused(toy: Toy) -> None:
    assert_stops(toy, ("--configfile", "demo/config/config.yaml"), f"add --directory {toy.root / 'demo'}")


OTHER_STEPS = {"training": {"steps": 7}}


def trained_from(toy: Toy, settings_file: str) -> Path:
    """The folder of a run whose training was started from a settings file."""
    folder = toy.root / "results/runs/d40_uniform_seed1"
    write_owner(folder, load_settings(toy.root / settings_file), toy.root / settings_file, toy.root)
    return folder


def test_a_second_settings_file_does_not_overwrite_the_runs_of_the_first(finished: Toy) -> None:
    """It would train them again and delete them first; an equal one, or other runs, are no harm."""
    folder = trained_from(finished, "config/config.yaml")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    finished.write_settings("config/mine.yaml", grid=SMALL_GRID, **OTHER_STEPS)
    for look in ((), ("--dry-run",)):
        outcome = finished.snakemake(*look, "--configfile", "config/mine.yaml")
        assert outcome.exit_code == 1 and len(outcome.message) == 1
        assert outcome.message[0].startswith(
            "results/runs/d40_uniform_seed1: a run of config/config.yaml (training.steps:"
        )
        assert "7 here)" in outcome.message[0] and "--directory NAME" in outcome.message[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    finished.write_settings("config/mine.yaml", grid=SMALL_GRID)
    assert finished.plan("--configfile", "config/mine.yaml") == {}
    finished.write_settings("config/mine.yaml", grid=SMALL_GRID | {"seeds": [2]}, **OTHER_STEPS)
    assert finished.plan("--configfile", "config/mine.yaml")["train"] == SMALL_GRID_RUNS


def test_a_changed_or_renamed_settings_file_trains_again(finished: Toy) -> None:
    trained_from(finished, "config/config.yaml")
    finished.write_settings(grid=SMALL_GRID, **OTHER_STEPS)
    assert finished.plan()["train"] == SMALL_GRID_RUNS
    (finished.root / "config/config.yaml").rename(finished.root / "config/mine.yaml")
    assert finished.plan("--configfile", "config/mine.yaml")["train"] == SMALL_GRID_RUNS


def test_a_missing_container_is_an_error(toy: Toy) -> None:
    assert_stops(
        toy, ("--software-deployment-method", "apptainer"), r"^/.*sublora\.sif: no such container; build it with"
    )


def test_files_that_are_not_shared_are_refused(toy: Toy) -> None:
    assert_stops(toy, ("--shared-fs-usage", "none"), "^a storage provider, or .* that all machines share")


def test_an_unknown_run_is_no_target(toy: Toy) -> None:
    outcome = toy.snakemake("--dry-run", "results/figures/pareto_d41.png")
    assert outcome.exit_code == 1
    assert "No rule to produce results/figures/pareto_d41.png" in outcome.text


@pytest.fixture
def gpu_toy(toy: Toy) -> Toy:
    """Settings that ask for a GPU, on a machine that hides whatever GPU it has."""
    toy.write_settings(grid=SMALL_GRID, compute={"device": "cuda"})
    toy.add_command("nvidia-smi", NO_NVIDIA_SMI)
    return toy


def test_without_a_gpu_nothing_is_downloaded_or_run(gpu_toy: Toy) -> None:
    outcome = gpu_toy.snakemake()
    assert outcome.exit_code == 1
    assert outcome.message[-1].startswith(
        f"config/config.yaml: compute.device is cuda and this machine ({os.uname().nodename}) has no usable GPU"
    )
    assert "profiles/slurm" in outcome.message[-1]
    assert "Traceback" not in outcome.text
    assert gpu_toy.calls == []


def test_looking_needs_no_gpu(gpu_toy: Toy) -> None:
    assert gpu_toy.plan()["train"] == SMALL_GRID_RUNS
    for arguments in (("--dag",), ("--rulegraph",), ("--unlock",), ("--lint",), ("--summary",)):
        assert gpu_toy.snakemake(*arguments).exit_code == 0, arguments
    assert gpu_toy.calls == []


@pytest.mark.slow
def test_data_and_bounds_need_no_gpu(gpu_toy: Toy) -> None:
    assert gpu_toy.snakemake("data").exit_code == 0
    target = "results/runs/d40_uniform_seed1/bounds.json"
    assert gpu_toy.snakemake(target).exit_code == 1
    gpu_toy.add_command("nvidia-smi", NVIDIA_SMI)
    assert gpu_toy.snakemake(target).exit_code == 0
    gpu_toy.add_command("nvidia-smi", NO_NVIDIA_SMI)
    (gpu_toy.root / target).unlink()
    assert gpu_toy.snakemake(target).exit_code == 0
    assert [call.split()[1] for call in gpu_toy.calls] == ["prepare", "train", "score", "bound", "bound"]


def test_yardsticks_and_a_trained_base_need_a_gpu(gpu_toy: Toy) -> None:
    assert gpu_toy.snakemake("yardsticks").exit_code == 1
    assert gpu_toy.calls == []
    gpu_toy.add_command("nvidia-smi", NVIDIA_SMI)
    assert gpu_toy.snakemake("yardsticks").exit_code == 0
    assert [call.split()[1] for call in gpu_toy.calls] == ["prepare", "yardsticks"]


def test_a_hidden_gpu_is_no_gpu(gpu_toy: Toy) -> None:
    gpu_toy.add_command("nvidia-smi", NVIDIA_SMI)
    assert gpu_toy.snakemake(CUDA_VISIBLE_DEVICES="").exit_code == 1
    assert gpu_toy.calls == []


def test_each_start_of_a_job_keeps_its_log(toy: Toy) -> None:
    name = "d40_uniform_seed1"
    failing = (f"results/runs/{name}/best_ckpt.pt", "--retries", "1", "--show-failed-logs")
    outcome = toy.snakemake(*failing, FAIL=name)
    assert outcome.exit_code == 1
    assert outcome.text.count("step 8: the loss is not finite") == 3  # shown twice, and the last line at the end
    assert toy.snakemake(failing[0]).exit_code == 0
    failed = "loading\nstep 8: the loss is not finite\n"
    kept = {path.name.removeprefix(name): path.read_text() for path in (toy.root / "logs/train").glob("*.log")}
    assert kept == {".1.log": failed, ".2.log": failed, ".3.log": "", ".log": ""}


def test_a_log_that_never_was_is_not_called_empty(toy: Toy) -> None:
    """As where a submission is refused."""
    rules = "workflow/rules/train.smk"
    toy.write(rules, (toy.root / rules).read_text().replace("start_job {{log:q}}", "exit 3"))
    outcome = toy.snakemake("results/runs/d40_uniform_seed1/best_ckpt.pt")
    assert outcome.exit_code == 1
    assert "logs/train/d40_uniform_seed1.log: (no log: the job never started" in outcome.text


def test_slurm_jobs_ask_for_one_a100(gpu_toy: Toy) -> None:
    """And for the settings' threads, whatever this machine has."""
    gpu_toy.write_settings(grid=SMALL_GRID, compute={"device": "cuda", "threads": 48})
    target = "results/runs/d40_uniform_seed1/bounds.json"
    text = gpu_toy.snakemake("--profile", "profiles/slurm", "--dry-run", target).text
    resources = dict(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", text, re.MULTILINE))
    for rule in ("train", "score"):
        assert "gpu=1" in resources[rule] and "cpus_per_task=48" in resources[rule]
        assert "gpu_model=a100" in resources[rule]
    assert "gpu=1" not in resources["bound"]


def test_a_training_on_two_gpus_is_two_processes_of_one_job(gpu_toy: Toy) -> None:
    gpu_toy.write_settings(
        grid=SMALL_GRID,
        compute={"device": "cuda", "gpus_per_training": 2},
        training={"micro_batch_sequences": 1},
    )
    target = "results/runs/d40_uniform_seed1/bounds.json"
    text = gpu_toy.snakemake("--profile", "profiles/slurm", "--dry-run", "-p", target).text
    jobs = dict(re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", text, re.MULTILINE))
    assert re.search(r"resources: .*\bgpu=2, cpus_per_task=\d+, gpu_model=a100, nodes=1\b", jobs["train"])
    assert re.search(r"resources: .*\bgpu=1, cpus_per_task=\d+, gpu_model=a100\b", jobs["score"])
    assert "torchrun --standalone --nproc-per-node=2 --no-python sublora train --config" in text
    assert "slurm_extra=--signal=TERM@120" in jobs["train"] and "--signal" not in jobs["score"]


@pytest.mark.slow
def test_data_and_figures_are_not_submitted(finished: Toy) -> None:
    """They run beside Snakemake, so that they need no SLURM at all."""
    script = finished.root / "workflow/scripts/figures.py"
    script.write_text(script.read_text() + "# larger symbols\n")
    without_waiting = ("--latency-wait", "0", "--slurm-init-seconds-before-status-checks", "1")
    for target, rule in (
        ("results/figures/pareto_d40.png", "figures_of_budget"),
        ("data/docstrings/meta.json", "prepare"),
    ):
        (finished.root / target).unlink()
        outcome = finished.snakemake("--profile", "profiles/slurm", *without_waiting, target)
        assert outcome.exit_code == 0, outcome.text
        assert outcome.jobs == {rule: 1}


@pytest.mark.slow
def test_time_grows_up_to_a_day_and_resubmissions_wait(gpu_toy: Toy) -> None:
    """An always failing job runs retries + 1 times, and no rule retries by itself."""
    gpu_toy.add_command("nvidia-smi", NVIDIA_SMI)
    outcome = gpu_toy.snakemake(
        *("--profile", "profiles/slurm", "--executor", "local", "--retries", "3", "--latency-wait", "0"),
        "results/runs/d40_uniform_seed1/best_ckpt.pt",
        FAIL="d40_uniform_seed1",
    )
    assert outcome.exit_code == 1
    lines = re.findall(r"resources: .*\bgpu=1.*", outcome.text)
    values = {name: [re.search(rf"\b{name}=([^,]*)", line)[1] for line in lines] for name in RETRIED}
    assert values == RETRIED
    assert sum(call.startswith("sublora train") for call in gpu_toy.calls) == 4


def test_the_command_line_of_the_own_environment_is_found(toy: Toy) -> None:
    """With .venv/bin/snakemake and no activated environment."""
    (toy.root / "bin/sublora").unlink()
    corpus = {"kind": "folder", "path": "nowhere", "text_field": "text", "unit_field": None}
    toy.write_settings(data={"corpus": corpus}, scoring={"sources": None})
    outcome = toy.snakemake("data", PATH="/usr/bin:/bin")
    assert outcome.exit_code == 1
    assert re.search(r"^logs/prepare/docstrings\.log: .*nowhere", outcome.text, re.MULTILINE), outcome.text


def test_units_and_sources_have_files_of_their_own(toy: Toy) -> None:
    toy.write_settings()
    assert "data/docstrings/source_ids.npy" in toy.snakemake("-n", "data").text
    toy.write_settings(data={"unit": "source"}, scoring={"sources": None})
    text = toy.snakemake("-n", "data").text
    assert all(f"data/docstrings/unit_starts_{split}.npy" in text for split in ("train", "val", "test"))
    assert "source_ids" not in text


def test_a_second_settings_file_in_a_folder_of_its_own_shares_the_data(finished: Toy) -> None:
    """As docs/cluster.md shows: a link to data/ is enough, and only networks are trained."""
    finished.write_settings("wide/config/config.yaml", grid=SMALL_GRID, **OTHER_STEPS)
    (finished.root / "wide/data").symlink_to("../data")
    plan = finished.plan("--directory", "wide")
    assert plan["train"] == SMALL_GRID_RUNS and "prepare" not in plan


def test_runs_of_other_settings_are_not_kept_beside_new_ones(finished: Toy) -> None:
    """One new seed after the learning rate was changed, and Snakemake was told to go by dates, or to --touch."""
    settings = load_settings(finished.root / "config/config.yaml")
    for run in settings.grid.runs():
        folder = finished.root / "results/runs" / run.name
        write_owner(folder, settings, finished.root / "config/config.yaml", finished.root)
        (folder / "certificate.bin").unlink()  # the toy's does not say what it was made with
    finished.write_settings(grid=SMALL_GRID | {"seeds": [1, 2]}, **OTHER_STEPS)
    before = finished.calls
    for arguments in (("--rerun-triggers", "mtime"), ("--touch",)):
        outcome = finished.snakemake(*arguments)
        assert outcome.exit_code == 1
        assert re.match(
            r"results/runs/d40_\S+: made with other settings than those of config/config\.yaml "
            r"\(training\.steps: .* there, 7 here\); delete this folder",
            outcome.message[-1],
        ), outcome.text
    assert finished.calls == before
    # By default Snakemake itself trains such a run again, and others that are not asked for are no harm.
    assert finished.snakemake("results/runs/d40_uniform_seed1/best_ckpt.pt").exit_code == 0
    assert len(finished.calls) == len(before) + 1


def test_an_input_dated_in_the_future_stops_before_any_job(finished: Toy) -> None:
    """Snakemake would delete what a training leaves, which is older than its input, and train again and again."""
    meta, target = finished.root / "data/docstrings/meta.json", "results/runs/d40_uniform_seed1/best_ckpt.pt"
    soon = time.time() + 3600.0
    os.utime(meta, (soon, soon))
    (finished.root / target).unlink()
    before = finished.calls
    outcome = finished.snakemake(target)
    assert outcome.exit_code == 1 and finished.calls == before
    assert re.match(
        r"data/docstrings/meta\.json: dated 3\d\d\d s in the future, by the clock of this machine \(.*touch data/docs",
        outcome.message[-1],
    ), outcome.text
    meta.touch()
    assert finished.snakemake(target).exit_code == 0


@pytest.mark.parametrize("prefix", ["", "gpt2/"])
def test_a_job_on_a_machine_whose_clock_is_behind_stops_at_once(tmp_path: Path, prefix: str) -> None:
    """As where another machine has written the data: the beginning of each job's command, alone and in a module."""
    text = (REPOSITORY / "workflow/rules/settings.smk").read_text()
    start_job = re.search(r'START_JOB = """(.*?)"""', text, re.DOTALL)[1].replace("\\\n", "")
    meta, log = "data/functions/meta.json", f"{prefix}logs/train/RUN.log"
    for path in (meta, log):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / prefix / meta).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / prefix / meta).touch()
    command = f"{start_job.replace('FILES', f'{meta} results/base/base.json')} start_job {log}; echo trained"

    def start() -> subprocess.CompletedProcess:
        shell = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert start().stdout == "trained\n" and (tmp_path / log).read_text() == ""
    soon = time.time() + 3600.0
    os.utime(tmp_path / prefix / meta, (soon, soon))
    stopped = start()
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert (
        (tmp_path / log).read_text().startswith(f"error: {prefix}{meta}: dated in the future by the clock of this mach")
    )
    assert (tmp_path / log).with_suffix(".2.log").read_text() == (tmp_path / log).read_text()


SCRIPT_THAT_FAILS = """import os
from sublora.analysis.scripting import user_errors_to

with user_errors_to(snakemake.log[0]):
    raise KeyError(os.environ["MPLBACKEND"])
"""


def test_a_failed_script_says_why_and_jobs_draw_without_jupyter(finished: Toy) -> None:
    finished.write("workflow/scripts/figures.py", SCRIPT_THAT_FAILS)
    backend = "module://matplotlib_inline.backend_inline"
    outcome = finished.snakemake("results/figures/pareto_d40.png", MPLBACKEND=backend)
    assert outcome.exit_code == 1
    assert re.search(r"^logs/figures_of_budget/d40\.log: KeyError: 'Agg'$", outcome.text, re.MULTILINE), outcome.text


def test_a_job_that_left_an_empty_log_is_not_said_never_to_have_started(finished: Toy) -> None:
    finished.write("workflow/scripts/figures.py", "raise KeyError\n")
    outcome = finished.snakemake("results/figures/pareto_d40.png")
    assert "never started; the reason" not in outcome.text
    assert re.search(
        r"^logs/figures_of_budget/d40\.log: \((empty|no) log: .*never started, or ended", outcome.text, re.MULTILINE
    )


def test_jobs_that_run_another_copy_of_the_library_stop(toy: Toy) -> None:
    """As with two checkouts and one environment."""
    shutil.copytree(REPOSITORY / "sublora", toy.root / "other/sublora")
    other = f"PYTHONPATH={toy.root / 'other'} exec {sys.executable} -m sublora.cli"
    toy.add_command("sublora", f'#!/bin/sh\n{other} "$@"\n')
    outcome = toy.snakemake("data")
    assert outcome.exit_code == 1
    complaint = rf"^logs/prepare/docstrings\.log: error: {toy.root}/other/sublora: this job runs this copy of sublora"
    assert re.search(complaint, outcome.text, re.MULTILINE), outcome.text


def test_linked_results_data_and_settings_stay_where_their_links_are(toy: Toy) -> None:
    """results/ on a scratch disk, beside whose target lie the data of another experiment of the same name."""
    scratch, disk = toy.root.parent / "scratch", toy.root.parent / "disk"
    for folder in (scratch / "results", scratch / "data/docstrings", disk / "data", disk / "settings"):
        folder.mkdir(parents=True)
    (scratch / "data/docstrings/meta.json").write_text("of somebody else\n")
    (toy.root / "config/config.yaml").rename(disk / "settings/mine.yaml")
    (toy.root / "config/config.yaml").symlink_to(disk / "settings/mine.yaml")
    (toy.root / "results").symlink_to(scratch / "results")
    (toy.root / "data").symlink_to(disk / "data")
    assert toy.snakemake("results/runs/d40_uniform_seed1/bounds.json").exit_code == 0
    assert (scratch / "data/docstrings/meta.json").read_text() == "of somebody else\n"
    assert (disk / "data/docstrings/meta.json").read_text() == "first\n"
    assert (scratch / "results/runs/d40_uniform_seed1/bounds.json").exists()
    assert toy.plan("results/runs/d40_uniform_seed1/bounds.json") == {}
