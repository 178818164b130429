"""kill -9 at any moment: the next start ends with the same bytes, and half a file never counts."""

import itertools
import time
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged
from killing import exit_status, outcome, start_in_child

from sublora import config
from sublora.runs.train import train_run
from sublora.system.names import CHECKPOINT_NAME
from sublora.tools.status import run_stage
from sublora.training import checkpoint

ALLOCATIONS = ["uniform", "fixed-0.2", "fixed-0.5", "fixed-0.8", "learned"]
KILLED = -9
FIRST = (("uniform", "plain"), ("learned", "entropy"))
EACH = [
    pytest.param(*each, marks=() if each in FIRST else pytest.mark.slow)
    for each in itertools.product(ALLOCATIONS, ("plain", "entropy"))
]


def settings_with(quantizer: str) -> config.Settings:
    """20 steps, a save every 4; dropout, so that random numbers are in play."""
    values = merged(merged(demo_values(), TINY), {"lora": {"dropout": 0.2}, "message": {"quantizer": quantizer}})
    values["rate_phase"]["val_documents"] = 20
    return config.parse_settings(values, source="tiny")


def run_of(allocation: str) -> config.RunSpec:
    return config.RunSpec(budget=40, allocation=allocation, seed=1)


@pytest.mark.parametrize(("allocation", "quantizer"), EACH)
def test_a_training_killed_again_and_again_ends_with_the_same_bytes(
    tiny_root: Path, tmp_path: Path, allocation: str, quantizer: str
) -> None:
    """Killed before the first save, between saves, in the middle of one, and in the last step."""
    settings, run = settings_with(quantizer), run_of(allocation)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_run(settings, run, root=tiny_root, out=whole)
    expected_states = {2: None, 9: 8, 13: 12, 19: 16}
    for step, state_step in expected_states.items():
        assert exit_status(start_in_child(settings, run, root=tiny_root, out=killed, kill_at_step=step)) == KILLED
        states = list((killed / "state").glob("*.pt"))
        assert [checkpoint.load(path)["history"]["step"] for path in states] == [state_step] * (state_step is not None)
        assert not (killed / CHECKPOINT_NAME).exists()
        assert run_stage(killed) == ("training" if states else "untrained")
    assert exit_status(start_in_child(settings, run, root=tiny_root, out=killed)) == 0
    assert outcome(killed) == outcome(whole)
    assert not (killed / "state").exists()


@pytest.mark.parametrize("step", [0, 5])
def test_a_half_written_state_does_not_count(tiny_root: Path, tmp_path: Path, step: int) -> None:
    """Killed after a new state is written beside the old one, before it takes its name."""
    settings, run = settings_with("plain"), run_of("learned")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_run(settings, run, root=tiny_root, out=whole)
    dying = {"kill_at_step": step, "while_saving": True}
    assert exit_status(start_in_child(settings, run, root=tiny_root, out=killed, **dying)) == KILLED
    names = [path.name for path in (killed / "state").iterdir()]
    assert sum(name.endswith(".tmp") for name in names) == 1
    assert sum(name.endswith(".pt") for name in names) == (1 if step else 0)
    assert exit_status(start_in_child(settings, run, root=tiny_root, out=killed)) == 0
    assert outcome(killed) == outcome(whole)
    assert not (killed / "state").exists()


def test_a_kill_while_the_result_is_written_leaves_no_result(tiny_root: Path, tmp_path: Path) -> None:
    settings, run = settings_with("plain"), run_of("uniform")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_run(settings, run, root=tiny_root, out=whole)
    assert (
        exit_status(start_in_child(settings, run, root=tiny_root, out=killed, kill_at_step=19, while_saving=True))
        == KILLED
    )
    assert not any((killed / name).exists() for name in (CHECKPOINT_NAME, "metrics.csv", "gating_trace.csv"))
    assert exit_status(start_in_child(settings, run, root=tiny_root, out=killed)) == 0
    assert outcome(killed) == outcome(whole)


def test_the_process_that_waits_takes_the_result_of_the_other(tiny_root: Path, tmp_path: Path) -> None:
    """Three jobs on one run, as after a kill -9 of Snakemake: the first cleans up while the others wait."""
    steps = tmp_path / "steps.txt"

    def counted(step: int) -> None:
        with open(steps, "a") as file:
            file.write(f"{step}\n")
        time.sleep(0.02)

    settings, run, out = settings_with("plain"), run_of("uniform"), tmp_path / "out"
    train_run(settings, run, root=tiny_root, out=tmp_path / "whole")
    jobs = [start_in_child(settings, run, root=tiny_root, out=out, before_step=counted) for _ in range(3)]
    assert [exit_status(job) for job in jobs] == [0, 0, 0]
    assert outcome(out) == outcome(tmp_path / "whole")
    assert steps.read_text().split() == [str(step) for step in range(20)]
    assert not (out / "state").exists()
