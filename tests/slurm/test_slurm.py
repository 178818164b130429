"""The workflow on a real SLURM: what jobs ask for, and that nothing that ends a job ends a training.

Each test holds decisions of profiles/slurm: the reasons stand there.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from base_samples import TRAINED

from slurm.cluster import ACCOUNT, GPUS, NODES, Cluster
from slurm.conftest import TIME_LIMIT_SECONDS, Workspace
from sublora import config
from sublora.data.prepare import prepare_all, prepare_dataset
from sublora.runs.base import make_base
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.digests import tensors_sha256

Build = Callable[..., Workspace]
ONE_RUN = {"budgets": [40], "allocations": ["learned"], "seeds": [1]}
LONG = {"steps": 1200, "eval_interval_steps": 100, "save_interval_steps": 50}
"""A training of many seconds, so that something can happen to it."""
NAME = "d40_learned_seed1"
TAKES_MINUTES = pytest.mark.skipif(
    os.environ.get("SUBLORA_TEST_SLURM") != "all", reason="only with SUBLORA_TEST_SLURM=all"
)
CHECKPOINT = f"results/runs/{NAME}/best_ckpt.pt"


def train_locally(space: Workspace, root: Path) -> list[config.RunSpec]:
    """The same runs without Snakemake and SLURM, below `root`."""
    settings = config.load_settings(space.root / "config/config.yaml")
    prepare_dataset(settings.data, root)
    for run in settings.grid.runs():
        train_run(settings, run, root=root, out=root / "results/runs" / run.name)
    return list(settings.grid.runs())


def weights(folder: Path) -> str:
    return tensors_sha256(torch.load(folder / "best_ckpt.pt", weights_only=True)["raw_model"].items())


def saved_states(space: Workspace) -> list[Path]:
    return list((space.folder(NAME) / "state").glob("*.pt"))


def log_of_training(space: Workspace) -> str:
    return space.log(f"train/{NAME}.log")


def trainer_of(space: Workspace, command: str = "train") -> psutil.Process:
    """The one process that trains in this workspace."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(space.root)
        and command in (process.info["cmdline"] or [])
        and any(part.endswith("/sublora") for part in process.info["cmdline"])
    ]
    return found


def preempt(cluster: Cluster) -> str:
    """A job that takes every GPU for a moment; returns its id."""
    everything = (f"--nodes={len(NODES)}", f"--ntasks={len(NODES)}", f"--gpus-per-node={GPUS}", "--output=/dev/null")
    return cluster.command("sbatch", "--parsable", "--qos=high", *everything, "--wrap", "sleep 1").strip()


@pytest.fixture(scope="module")
def failing(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Any]]:
    """A workflow whose one training always fails, begun before the other tests: it mostly waits."""
    space = Workspace.build(
        tmp_path_factory.mktemp("failing") / "work", cluster, grid=ONE_RUN, data={"name": "docstrings"}
    )
    with space.pretend().start("--retries", "1", CHECKPOINT, FAIL=NAME) as snakemake:
        yield space, snakemake


def test_every_network_runs_on_one_gpu_of_its_own(workspace: Build, failing: object, tmp_path: Path, capsys) -> None:
    """Two budgets x two allocations: what was asked for, where it ran, and the same bytes as without SLURM."""
    threads = 5  # more than this machine may have: a login node's cores do not count
    space = workspace(compute={"threads": threads})
    assert space.run("bounds") == 0, space.output
    jobs = space.jobs()
    with capsys.disabled():
        print()
        for job in jobs:
            print(f"  job {job['JobId']:>3}  {job['Comment']:<40} {job['TresPerJob']} on {job['NodeList']}")
    assert len(jobs) == 8 and {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert {job["Account"] for job in jobs} == {ACCOUNT}
    for rule in ("train", "score"):
        for job in space.jobs(rule):
            assert job["TresPerJob"] == "gres:gpu:a100:1"
            assert (job["NumNodes"], job["MinMemoryNode"]) == ("1", "24000M")
            assert job["CPUs/Task"] == str(threads)
    local = tmp_path / "local"
    for run in train_locally(space, local):
        record = json.loads((space.folder(run.name) / "bounds.json").read_text())
        suffix = f"_wildcards_{run.budget}_{run.allocation}_{run.seed}"
        ids = {job["Comment"].removesuffix(suffix): job["JobId"] for job in jobs if job["Comment"].endswith(suffix)}
        assert record["slurm_job_ids"] == {rule: ids[f"rule_{rule}"] for rule in ("train", "score")}
        score_run(local / "results/runs" / run.name, config_path=space.root / "config/config.yaml", root=local)
        here, there = (root / "results/runs" / run.name / "certificate.bin" for root in (local, space.root))
        assert here.read_bytes() == there.read_bytes()


def test_a_preemption_costs_no_retry(workspace: Build, tmp_path: Path) -> None:
    """SIGTERM at the start of the grace time: saved, and trained on until SLURM requeues the job.

    Nothing is saved periodically here: what is there to resume from was saved on the signal.
    """
    space = workspace(grid=ONE_RUN, training=LONG | {"save_interval_steps": 10**6})
    with space.start("--slurm-qos", "low", CHECKPOINT) as snakemake:
        space.wait_for(lambda: "step 100:" in log_of_training(space))
        first = trainer_of(space)
        first.suspend()  # so that it cannot end before; SLURM wakes it, together with SIGTERM
        preempt(space.cluster)
        space.wait_for(lambda: "going on until SLURM ends the job" in log_of_training(space))
        first.suspend()  # nor between SIGTERM and the kill
        assert saved_states(space)
        space.wait_for(lambda: "resuming at step" in log_of_training(space))
        assert snakemake.wait(TIME_LIMIT_SECONDS) == 0, space.output
    (job,) = space.jobs("train")
    assert (job["JobState"], job["Restarts"], job["QOS"]) == ("COMPLETED", "1", "low")
    # The log of the start that was preempted is kept.
    assert "going on until SLURM ends the job" in space.log(f"train/{NAME}.1.log")
    assert "resuming at step" in space.log(f"train/{NAME}.2.log")
    train_locally(space, tmp_path / "local")
    assert weights(space.folder(NAME)) == weights(tmp_path / "local/results/runs" / NAME)


def test_a_base_survives_the_loss_of_its_node_and_of_its_process(workspace: Build, tmp_path: Path) -> None:
    """A node failure: SLURM requeues the job. Then kill -9: Snakemake submits it again."""
    base = TRAINED | {"steps": 600, "save_interval_steps": 20, "eval_interval_steps": 400, "log_interval_steps": 20}
    space = workspace(grid=ONE_RUN, base=base)
    target = "results/base/base.json"
    with space.start(target) as snakemake:
        space.wait_for(lambda: list((space.root / "results/base/state").glob("*.pt")))
        trainer_of(space, "base").suspend()
        (job,) = space.jobs("base")
        space.cluster.lose_node(job["NodeList"])
        space.wait_for(lambda: "resuming at step" in space.log("base.log"))
        trainer_of(space, "base").kill()
        space.cluster.restore_node(job["NodeList"])
        assert snakemake.wait(TIME_LIMIT_SECONDS) == 0, space.output
    assert [(job["JobState"], job["Restarts"]) for job in space.jobs("base")] == [("FAILED", "1"), ("COMPLETED", "0")]
    assert all("resuming at step" in space.log(f"base.{attempt}.log") for attempt in (2, 3))
    local = tmp_path / "local"
    settings = config.load_settings(space.root / "config/config.yaml")
    prepare_all(settings, local)
    make_base(settings, root=local)
    here, there = (root / "results/base/base.safetensors" for root in (space.root, local))
    assert here.read_bytes() == there.read_bytes()


def test_jobs_that_outlive_snakemake_are_not_trained_twice(workspace: Build, tmp_path: Path) -> None:
    """kill -9, --unlock, again: the second job of a run waits for the first and takes its result."""
    space = workspace(grid=ONE_RUN, training=LONG)
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: saved_states(space))
        first = trainer_of(space)
        first.suspend()  # so that it cannot end before the second one has come to wait for it
        snakemake.kill()
    assert [job["JobState"] for job in space.jobs("train")] == ["RUNNING"]
    assert space.run(CHECKPOINT) == 1  # locked
    assert space.run("--unlock") == 0, space.output
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "waiting for it to end" in log_of_training(space))
        first.resume()
        assert snakemake.wait(TIME_LIMIT_SECONDS) == 0, space.output
    jobs = space.jobs("train")
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 2
    assert "another process has written it in the meantime" in log_of_training(space)
    train_locally(space, tmp_path / "local")
    assert weights(space.folder(NAME)) == weights(tmp_path / "local/results/runs" / NAME)


def test_a_failing_job_is_submitted_retries_plus_one_times_with_more_each_time(failing: tuple[Workspace, Any]) -> None:
    space, snakemake = failing
    assert snakemake.wait(TIME_LIMIT_SECONDS) == 1
    jobs = space.jobs("train")
    calls = [line for line in (space.root / "calls.txt").read_text().splitlines() if line.startswith("sublora train")]
    assert len(jobs) == len(calls) == 2
    assert [job["JobState"] for job in jobs] == ["FAILED", "FAILED"]
    assert [job["MinMemoryNode"] for job in jobs] == ["24000M", "24000M"]
    assert [job["TimeLimit"] for job in jobs] == ["12:00:00", "1-00:00:00"]
    assert not (space.root / CHECKPOINT).exists()
    assert "step 8: the loss is not finite" in space.output


@TAKES_MINUTES
def test_a_training_on_two_gpus_stops_and_goes_on_together(workspace: Build) -> None:
    """One job with two GPUs and two processes, through SIGTERM to all of them at once."""
    training = LONG | {"save_interval_steps": 10**6}
    space = workspace(grid=ONE_RUN, training=training, compute={"gpus_per_training": 2})
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "step 100:" in log_of_training(space))
        space.cluster.command("scancel", "--signal=TERM", space.jobs("train")[0]["JobId"])
        assert snakemake.wait(TIME_LIMIT_SECONDS) == 0, space.output
    jobs = space.jobs("train")
    assert [job["JobState"] for job in jobs] == ["FAILED", "COMPLETED"]
    assert {job["TresPerJob"] for job in jobs} == {"gres:gpu:a100:2"} and {job["NumNodes"] for job in jobs} == {"1"}
    assert log_of_training(space).count("resuming at step") == 1


@TAKES_MINUTES
def test_a_training_beyond_its_time_limit_goes_on_with_more(workspace: Build, tmp_path: Path) -> None:
    space = workspace(grid=ONE_RUN, training=LONG | {"steps": 8000, "save_interval_steps": 10**6})
    space.change_profile("min(720 * attempt, 1440)", "min(2 * attempt, 10)")
    space.change_profile("TERM@120", "TERM@20")
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: "step 100:" in log_of_training(space))
        trainer = trainer_of(space)
        trainer.suspend()  # until SLURM wakes it, together with SIGTERM
        space.wait_for(lambda: "going on until SLURM ends the job" in log_of_training(space))
        trainer.suspend()  # until the time limit, so that it cannot end before
        space.wait_for(lambda: space.jobs("train")[0]["JobState"] == "TIMEOUT")
        assert snakemake.wait(TIME_LIMIT_SECONDS) == 0, space.output
    assert [(job["JobState"], job["TimeLimit"]) for job in space.jobs("train")] == [
        ("TIMEOUT", "00:02:00"),
        ("COMPLETED", "00:04:00"),
    ]
    assert "resuming at step" in space.log(f"train/{NAME}.2.log")
    train_locally(space, tmp_path / "local")
    assert weights(space.folder(NAME)) == weights(tmp_path / "local/results/runs" / NAME)


DOCSTRINGS = {"name": "docstrings"}
"""Whose files the pretended jobs write."""


@TAKES_MINUTES
def test_submissions_beyond_the_limit_are_given_up_unless_jobs_is_below_it(workspace: Build) -> None:
    """Both as docs/cluster.md says; what was given up is submitted by the next call."""
    space = workspace(data=DOCSTRINGS).pretend()
    assert space.run("--slurm-qos", "narrow", "trainings") == 1
    assert "QOSMaxSubmitJobPerUserLimit" in space.output
    done = len(list(space.root.glob("results/runs/*/best_ckpt.pt")))
    assert 0 < done < 4
    assert space.run("--slurm-qos", "narrow", "--jobs", "2", "trainings") == 0, space.output
    assert len(space.jobs("train")) == 4


@TAKES_MINUTES
def test_a_job_array_trains_the_whole_grid(workspace: Build) -> None:
    space = workspace(data=DOCSTRINGS).pretend()
    assert space.run("--slurm-array-jobs", "train", "trainings") == 0, space.output
    jobs = space.jobs()
    assert len(jobs) == 4 and len({job["ArrayJobId"] for job in jobs}) == 1
    assert len(list(space.root.glob("results/runs/*/best_ckpt.pt"))) == 4


@TAKES_MINUTES
def test_sites_that_want_gres_get_it(workspace: Build) -> None:
    space = workspace(grid=ONE_RUN, data=DOCSTRINGS).pretend()
    space.change_profile("gpu_model: a100 #", 'gpu: 0\n    gres: "gpu:a100:1" #')
    assert space.run(CHECKPOINT) == 0, space.output
    (job,) = space.jobs("train")
    assert job["TresPerNode"] == "gres:gpu:a100:1" and "TresPerJob" not in job


@TAKES_MINUTES
def test_a_run_that_ended_unseen_is_kept_if_snakemake_is_told(workspace: Build) -> None:
    """The recipe of docs/cluster.md for runs that finished after the main process was killed."""
    space = workspace(grid=ONE_RUN, training=LONG)
    with space.start(CHECKPOINT) as snakemake:
        space.wait_for(lambda: saved_states(space))
        snakemake.kill()
    space.wait_for(lambda: space.jobs("train")[0]["JobState"] == "COMPLETED")
    before = (space.root / CHECKPOINT).read_bytes()
    assert space.run("--unlock") == 0, space.output
    outputs = [str(Path(CHECKPOINT).with_name(name)) for name in ("best_ckpt.pt", "metrics.csv", "gating_trace.csv")]
    assert space.run("--cleanup-metadata", *outputs) == 1 and "metadata was not present" in space.output
    assert space.run(CHECKPOINT) == 0, space.output
    assert len(space.jobs("train")) == 1 and (space.root / CHECKPOINT).read_bytes() == before
