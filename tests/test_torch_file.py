"""Files for torch.load, written without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from sublora.system.archives import save_numbers

NUMBERS = {"format": 1, "bound_value": 5.474146791985934, "large": 2**40, "negative": -3, "small": 5e-324}


def test_torch_reads_the_numbers_bit_for_bit(tmp_path):
    save_numbers(tmp_path / "numbers.pt", NUMBERS)
    loaded = torch.load(tmp_path / "numbers.pt", weights_only=True)
    assert loaded == NUMBERS
    assert [type(value) for value in loaded.values()] == [type(value) for value in NUMBERS.values()]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_numbers(tmp_path / name, NUMBERS)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_what_a_safe_reader_would_refuse_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="bound is float64, expected int or float"):
        save_numbers(tmp_path / "numbers.pt", {"bound": np.float64(1.0)})
    assert not list(tmp_path.iterdir())


def test_bounds_are_computed_without_torch_and_scipy():
    """Importing them takes longer than everything else that `sublora bound` does."""
    code = "import sys, sublora.runs.bound; print({'torch', 'scipy', 'pandas', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
