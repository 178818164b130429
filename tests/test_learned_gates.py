"""The gates learn: on tasks whose best split is known they end on its side, and without a signal on neither.

A quick version of benchmarks/teacher.py, whose tasks and arms it uses.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

MIXED = "B, A, B, A, B"


@pytest.fixture(scope="module")
def study():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "teacher.py"
    spec = importlib.util.spec_from_file_location("teacher", path)
    module = sys.modules["teacher"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mixed(study):
    """A teacher in the subspace, and the learned arm trained on it."""
    world = study.World(study.Task(MIXED, True, 1, steps=120))
    return world, study.train(world, "learned")


@pytest.mark.slow
def test_gates_find_the_split_of_a_teacher_in_the_subspace(study, mixed):
    """Every gate on its teacher's side, a loss below every fixed split's, and gradients that have a direction."""
    world, learned = mixed
    assert all(study.right_sides(learned, MIXED))
    assert learned.loss_bits < min(study.train(world, arm).loss_bits for arm in study.FIXED)
    assert np.mean(learned.snr[:3]) > 0.6


@pytest.mark.slow
def test_a_width_of_one_coordinate_gives_gates_noise(study, mixed):
    """What annealing is for: with a narrow mask the same gates hardly know where to go."""
    world, annealed = mixed
    narrow = study.train(world, "learned", study.Gates(mask_width_start=1.0 / study.BUDGET, mask_width_end=1.0))
    assert np.mean(narrow.snr) < 0.3 * np.mean(annealed.snr)
    assert narrow.loss_bits > 2.0 * annealed.loss_bits


@pytest.mark.slow
def test_gates_stay_undecided_without_a_signal(study):
    """Labels drawn from the base model itself: nothing to learn, so neither side wins over seeds and gates."""
    outcomes = [study.train(study.World(study.Task(None, False, seed, steps=60)), "learned") for seed in (1, 2, 3)]
    _, low, high, above = study.undecided(np.array([outcome.gamma for outcome in outcomes]))
    assert low < 0.5 < high and 0.1 < above < 0.9
    assert np.mean([outcome.snr for outcome in outcomes]) < 0.35


def test_arms_of_a_task_start_at_the_base_model(study):
    """The divergence from the teacher at w = 0 is the same to the last bit, soft masks or hard."""
    world = study.World(study.Task(MIXED, False, 1, steps=1))
    starts = {world.divergence_bits(world.module(arm)()) for arm in (*study.FIXED, "uniform", "learned")}
    assert len(starts | {world.divergence_bits(world.module("learned")(20.0))}) == 1
