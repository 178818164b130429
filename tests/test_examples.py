"""The examples run, and say what their pages promise."""

import importlib

import pytest
import torch
from conftest import REPOSITORY


@pytest.fixture
def example(monkeypatch):
    """A module of examples/ by its name."""
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_num_threads(threads)


def check(result) -> None:
    """The bound lies above both means, holds for the examples set apart, and says more than guessing."""
    assert result.train < result.bound < result.guessing
    assert result.held_out < result.held_out_bound < result.bound
    assert 50 < result.code_bits < result.n


@pytest.mark.slow
def test_digits_are_bounded_far_below_chance(example, capsys) -> None:
    module = example("digits")
    result = module.main()
    check(result)
    assert result.bound < 0.45 and result.n == 1397
    module.show([result])
    assert f"{result.bound:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_language_model_in_trainer(example) -> None:
    check(example("language_model").main())


@pytest.mark.slow
def test_an_encoder_with_one_loss_per_line(example) -> None:
    errors, bits = example("encoder").main()
    check(errors)
    check(bits)
    assert errors.code_bits == bits.code_bits
