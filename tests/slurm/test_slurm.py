"""The workflow on a real SLURM: what jobs ask for, and that nothing that ends a job ends a training.

Each test holds decisions of profiles/slurm: the reasons stand there.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from workflow.toy import FAKE_SUBLORA

from slurm.cluster import Cluster
from slurm.conftest import Workspace
from sublora import config
from sublora.data.prepare import prepare_dataset
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.training.checkpoint import tensors_sha256

Build = Callable[..., Workspace]
ONE_RUN = {"budgets": [40], "allocations": ["learned"], "seeds": [1]}
LONG = {"steps": 2500, "eval_interval_steps": 100, "save_interval_steps": 50}
"""A training of many seconds, so that something can happen to it."""
NAME = "d40_learned_seed1"
CHECKPOINT = f"results/runs/{NAME}/best_ckpt.pt"


def train_locally(space: Workspace, root: Path) -> list[config.RunSpec]:
    """The same runs without Snakemake and SLURM, below `root`."""
    settings = config.load_settings(space.root / "config/config.yaml")
    prepare_dataset(settings.data, root)
    for run in settings.grid.runs():
        train_run(settings, run, root=root, out=root / "results/runs" / run.name)
    return list(settings.grid.runs())


def weights(folder: Path) -> str:
    return tensors_sha256(torch.load(folder / "best_ckpt.pt", weights_only=True)["raw_model"])


def jobs_of(space: Workspace, rule: str) -> list[dict[str, str]]:
    return [job for job in space.jobs() if job["Comment"].startswith(f"rule_{rule}_wildcards_")]


def saved_states(space: Workspace) -> list[Path]:
    return list((space.folder(NAME) / "state").glob("*.pt"))


def log_of_training(space: Workspace) -> str:
    path = space.root / f"logs/train/{NAME}.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def failing(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Any]]:
    """A workflow whose one training always fails, begun before the other tests: it mostly waits."""
    space = Workspace.build(
        tmp_path_factory.mktemp("failing") / "work", cluster, grid=ONE_RUN, data={"name": "docstrings"}
    )
    (space.root / "bin").mkdir()
    (space.root / "bin/sublora").write_text(FAKE_SUBLORA)
    (space.root / "bin/sublora").chmod(0o755)
    with space.start("--retries", "1", CHECKPOINT, FAIL=NAME) as snakemake:
        yield space, snakemake


def test_every_network_runs_on_one_gpu_of_its_own(workspace: Build, failing: object, tmp_path: Path, capsys) -> None:
    """Two budgets x two allocations: what was asked for, where it ran, and the same bytes as without SLURM."""
    space = workspace()
    assert space.run("bounds") == 0, space.output
    jobs = space.jobs()
    with capsys.disabled():
        print()
        for job in jobs:
            print(f"  job {job['JobId']:>3}  {job['Comment']:<40} {job.get('TresPerJob', 'no GPU')}")
    assert len(jobs) == 12 and {job["JobState"] for job in jobs} == {"COMPLETED"}
    for rule in ("train", "score"):
        for job in jobs_of(space, rule):
            assert job["TresPerJob"] == "gres:gpu:a100:1"
            assert (job["NumNodes"], job["MinMemoryNode"]) == ("1", "24000M")
    assert not any("TresPerJob" in job for job in jobs_of(space, "bound"))
    local = tmp_path / "local"
    for run in train_locally(space, local):
        record = json.loads((space.folder(run.name) / "bounds.json").read_text())
        suffix = f"_wildcards_{run.budget}_{run.allocation}_{run.seed}"
        ids = {job["Comment"].removesuffix(suffix): job["JobId"] for job in jobs if job["Comment"].endswith(suffix)}
        assert record["slurm_job_ids"] == {rule: ids[f"rule_{rule}"] for rule in ("train", "score")}
        score_run(local / "results/runs" / run.name, config_path=space.root / "config/config.yaml", root=local)
        here, there = (root / "results/runs" / run.name / "certificate.bin" for root in (local, space.root))
        assert here.read_bytes() == there.read_bytes()


def test_a_training_told_to_stop_and_requeued_goes_on(workspace: Build, tmp_path: Path) -> None:
    """First the signal before the time limit, which costs a retry; then a requeue, which keeps the job's id.

    Nothing is saved periodically here: what is there to resume from was saved on the signal.
    """
    space = workspace(grid=ONE_RUN, training=LONG | {"save_interval_steps": 10**6})
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "step 100:" in log_of_training(space))
        (first,) = jobs_of(space, "train")
        assert first["JobState"] == "RUNNING"
        space.cluster.command("scancel", "--signal=TERM", first["JobId"])
        space.wait_for(lambda: jobs_of(space, "train")[0]["JobState"] == "FAILED")
        assert not (space.root / CHECKPOINT).exists()
        resumed_at = space.wait_for(lambda: re.search(r"resuming at step (\d+)", log_of_training(space)))
        second = jobs_of(space, "train")[1]
        space.cluster.command("scontrol", "requeue", second["JobId"])
        assert snakemake.wait(timeout=120) == 0, space.output
    jobs = jobs_of(space, "train")
    assert [job["JobState"] for job in jobs] == ["FAILED", "COMPLETED"]
    assert [job["Restarts"] for job in jobs] == ["0", "1"]
    later = re.search(r"resuming at step (\d+)", log_of_training(space))
    assert later is not None and int(later[1]) >= int(resumed_at[1])
    train_locally(space, tmp_path / "local")
    assert weights(space.folder(NAME)) == weights(tmp_path / "local/results/runs" / NAME)


def trainer_of(space: Workspace) -> psutil.Process:
    """The one process that trains in this workspace."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(space.root)
        and "train" in (process.info["cmdline"] or [])
        and any(part.endswith("/sublora") for part in process.info["cmdline"])
    ]
    return found


def test_jobs_that_outlive_snakemake_are_not_trained_twice(workspace: Build, tmp_path: Path) -> None:
    """kill -9, --unlock, again: the second job of a run waits for the first and takes its result."""
    space = workspace(grid=ONE_RUN, training=LONG)
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: saved_states(space))
        first = trainer_of(space)
        first.suspend()  # so that it cannot end before the second one has come to wait for it
        snakemake.kill()
    assert [job["JobState"] for job in jobs_of(space, "train")] == ["RUNNING"]
    assert space.run(CHECKPOINT) == 1  # locked
    assert space.run("--unlock") == 0, space.output
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "waiting for it to end" in log_of_training(space))
        first.resume()
        assert snakemake.wait(timeout=120) == 0, space.output
    jobs = jobs_of(space, "train")
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 2
    assert "written by the process that was waited for" in log_of_training(space)
    train_locally(space, tmp_path / "local")
    assert weights(space.folder(NAME)) == weights(tmp_path / "local/results/runs" / NAME)


def test_a_failing_job_is_submitted_retries_plus_one_times_with_more_each_time(failing: tuple[Workspace, Any]) -> None:
    space, snakemake = failing
    assert snakemake.wait(timeout=120) == 1
    jobs = jobs_of(space, "train")
    calls = [line for line in (space.root / "calls.txt").read_text().splitlines() if line.startswith("sublora train")]
    assert len(jobs) == len(calls) == 2
    assert [job["JobState"] for job in jobs] == ["FAILED", "FAILED"]
    assert [job["MinMemoryNode"] for job in jobs] == ["24000M", "48000M"]
    assert [job["TimeLimit"] for job in jobs] == ["12:00:00", "1-00:00:00"]
    assert not (space.root / CHECKPOINT).exists()
    assert "step 8: the loss is not finite" in space.output


@pytest.mark.skipif(os.environ.get("SUBLORA_TEST_SLURM") != "all", reason="only with SUBLORA_TEST_SLURM=all")
def test_a_training_on_two_gpus_stops_and_goes_on_together(workspace: Build) -> None:
    """One job with two GPUs and two processes, through SIGTERM to all of them at once."""
    training = LONG | {"save_interval_steps": 10**6}
    space = workspace(grid=ONE_RUN, training=training, compute={"gpus_per_training": 2})
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "step 100:" in log_of_training(space))
        space.cluster.command("scancel", "--signal=TERM", jobs_of(space, "train")[0]["JobId"])
        assert snakemake.wait(timeout=150) == 0, space.output
    jobs = jobs_of(space, "train")
    assert [job["JobState"] for job in jobs] == ["FAILED", "COMPLETED"]
    assert {job["TresPerJob"] for job in jobs} == {"gres:gpu:a100:2"} and {job["NumNodes"] for job in jobs} == {"1"}
    assert log_of_training(space).count("resuming at step") == 1
