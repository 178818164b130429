"""Schedulers beside SLURM, by profiles/pbs: its scripts call a `qsub` and a `qstat` that know what PBS knows."""

import shlex

import pytest

from workflow.toy import Toy

QSUB = """#!/bin/bash
# Runs the job in the background, as on a node of its own, and prints its id.
set -eu
mkdir -p queue
id=$(($(ls queue | wc -l) + 1))
echo "$*" > "queue/$id"
script=${@: -1}
( set +e; bash "$script" > "$PWD/queue-$id.out" 2>&1; echo $? > "exit-$id" ) > /dev/null 2>&1 &
echo "$id.server"
"""
QSTAT = """#!/bin/bash
# As PBS with job history does: `qstat -x -f ID`.
id=${@: -1}
id=${id%.server}
test -e "queue/$id" || { echo "qstat: Unknown Job Id $id" >&2; exit 153; }
echo "Job Id: $id.server"
if [ -s "exit-$id" ]; then
  echo "    job_state = F"
  echo "    Exit_status = $(cat "exit-$id")"
else
  echo "    job_state = R"
fi
"""
PROFILE = ("--profile", "profiles/pbs", "--latency-wait", "5", "--seconds-between-status-checks", "1")


def with_pbs(toy: Toy) -> Toy:
    toy.add_command("qsub", QSUB)
    toy.add_command("qstat", QSTAT)
    return toy


@pytest.mark.slow
def test_jobs_ask_for_what_they_need_and_again_with_more_time(toy: Toy) -> None:
    """One run to its bound, and one whose training fails twice."""
    failing = "d60_learned_seed1"
    targets = ("results/runs/d40_uniform_seed1/bounds.json", f"results/runs/{failing}/best_ckpt.pt")
    outcome = with_pbs(toy).snakemake(*PROFILE, "--retries", "1", *targets, FAIL=failing)
    assert outcome.exit_code == 1
    assert (toy.root / targets[0]).exists() and not (toy.root / targets[1]).exists()
    assert f"logs/train/{failing}.log: step 8: the loss is not finite" in outcome.text
    jobs = [shlex.split(path.read_text()) for path in (toy.root / "queue").iterdir()]
    threads = toy.settings["compute"]["threads"]
    assert all(f"select=1:ngpus=1:ncpus={threads}:mem=24000mb" in job for job in jobs)
    times = sorted((job[job.index("-N") + 1], job[-2]) for job in jobs)  # before the script
    once, twice = ("train", "walltime=12:0:00"), ("train", "walltime=24:0:00")
    assert times == [("score", "walltime=2:0:00"), once, once, twice]  # and none for the bound
