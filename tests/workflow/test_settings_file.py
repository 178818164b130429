"""The one settings file that jobs read: what it holds, and when it is written."""

from pathlib import Path

import pytest

from sublora.config import load_settings
from workflow.test_rerun import stages
from workflow.toy import SMALL_GRID, SMALL_GRID_RUNS, Toy

ONE_TRAINING = "results/runs/d40_uniform_seed1/best_ckpt.pt"
EDITING_SUBLORA = """#!/bin/bash
# Someone edits the config while a workflow runs: it must not reach the jobs that are still to come.
sed -i 's/n_layer: [0-9]*/n_layer: 17/' config/config.yaml
exec "$(dirname "$0")/toy_sublora" "$@"
"""


def resolved(toy: Toy) -> Path:
    return toy.root / "results/settings.yaml"


def test_it_holds_the_settings_in_force(finished: Toy) -> None:
    assert load_settings(resolved(finished)) == load_settings(finished.root / "config/config.yaml")
    finished.write_settings("config/mine.yaml", grid=SMALL_GRID | {"seeds": [1, 2]})
    target = "results/runs/d40_uniform_seed2/best_ckpt.pt"
    assert finished.snakemake("--configfile", "config/mine.yaml", "--", target).exit_code == 0
    assert finished.calls[-1].startswith("sublora train --config results/settings.yaml --budget 40")
    assert load_settings(resolved(finished)) == load_settings(finished.root / "config/mine.yaml")


@pytest.mark.parametrize("mode", ["--dry-run", "--dag", "--lint", "--touch"])
def test_looking_does_not_write_it(finished: Toy, mode: str) -> None:
    before = resolved(finished).read_bytes()
    finished.write_settings(grid=SMALL_GRID, training={"steps": 7})
    assert finished.snakemake(mode).exit_code == 0
    assert resolved(finished).read_bytes() == before


def test_equal_settings_leave_the_file_alone_and_its_date_reruns_nothing(finished: Toy) -> None:
    before = resolved(finished).stat()
    assert finished.snakemake("--forcerun", "bound").exit_code == 0
    after = resolved(finished).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    resolved(finished).touch()
    assert finished.plan() == {}
    resolved(finished).unlink()
    assert finished.plan() == {}


def test_an_edit_of_the_file_does_not_reach_the_jobs(finished: Toy) -> None:
    """Nor does the loss of Snakemake's own records, by which a rule that wrote the file would be judged."""
    expected = resolved(finished).read_bytes()
    resolved(finished).write_bytes(expected + b"# edited\n")
    (finished.root / ONE_TRAINING).unlink()
    assert finished.snakemake("--rerun-triggers", "mtime", "--", ONE_TRAINING).exit_code == 0
    assert resolved(finished).read_bytes() == expected


def test_a_change_that_reaches_no_stage_is_written_when_a_job_runs(finished: Toy) -> None:
    finished.write_settings(grid=SMALL_GRID, training={"log_interval_steps": 77})
    (finished.root / ONE_TRAINING).unlink()
    assert finished.snakemake("--", ONE_TRAINING).exit_code == 0
    assert load_settings(resolved(finished)).training.log_interval_steps == 77


def test_the_config_may_be_edited_while_jobs_run(toy: Toy) -> None:
    (toy.root / "bin/sublora").rename(toy.root / "bin/toy_sublora")
    toy.add_command("sublora", EDITING_SUBLORA)
    before = load_settings(toy.root / "config/config.yaml").model.n_layer
    assert toy.snakemake("--", ONE_TRAINING).exit_code == 0
    assert toy.settings["model"]["n_layer"] == 17 != before
    assert load_settings(resolved(toy)).model.n_layer == before


def test_single_settings_on_the_command_line_reach_the_jobs(finished: Toy) -> None:
    override = ("--config", "training={steps: 7, betas: [0.9, 0.99]}", "message={extra_bits: 2.5}")
    plan = stages(finished.plan(*override))
    assert plan == {"train": SMALL_GRID_RUNS, "score": SMALL_GRID_RUNS, "bound": SMALL_GRID_RUNS}
    assert finished.snakemake(ONE_TRAINING, *override).exit_code == 0
    settings = load_settings(resolved(finished))
    assert (settings.training.steps, settings.training.betas, settings.message.extra_bits) == (7, (0.9, 0.99), 2.5)


def test_several_settings_files_are_merged_in_their_order(toy: Toy) -> None:
    toy.write("config/short.yaml", "training: {steps: 7}\ngrid: {seeds: [8]}\n")
    files = ("--configfile", "config/config.yaml", "config/short.yaml")
    assert toy.snakemake("results/runs/d40_uniform_seed8/best_ckpt.pt", *files).exit_code == 0
    settings = load_settings(resolved(toy))
    assert (settings.training.steps, settings.grid.seeds) == (7, (8,))


def test_a_submitted_job_takes_the_settings_of_the_process_that_submitted_it(finished: Toy) -> None:
    """As an executor starts it on a node: the config may have been edited while the job waited in the queue."""
    before = resolved(finished).read_bytes()
    finished.write_settings(grid=SMALL_GRID | {"seeds": [3]})
    job = (
        "--mode",
        "remote",
        "--cores",
        "1",
        "--force",
        "--nolock",
        "--target-jobs",
        "bound:budget=40,allocation=uniform,seed=1",
    )
    outcome = finished.snakemake(*job)
    assert outcome.exit_code == 0, outcome.text
    assert finished.calls[-1] == "sublora bound results/runs/d40_uniform_seed1 --config results/settings.yaml"
    assert resolved(finished).read_bytes() == before
