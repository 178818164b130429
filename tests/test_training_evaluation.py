"""Signal and noise of gate gradients."""

import math

import numpy as np
import pytest
import torch

from sublora.training.evaluation import GateSignal


def fed(gradients_NG: np.ndarray, signal: GateSignal, gates: list[torch.nn.Parameter]) -> None:
    for row in gradients_NG:
        for gate, value in zip(gates, row, strict=True):
            gate.grad = torch.tensor(value, dtype=torch.float32)
        signal.add()


def signal_of(count: int) -> tuple[GateSignal, list[torch.nn.Parameter]]:
    gates = [torch.nn.Parameter(torch.zeros(())) for _ in range(count)]
    return GateSignal(gates, torch.device("cpu")), gates


def test_ratio_is_that_of_the_window_alone():
    generator = np.random.default_rng(0)
    signal, gates = signal_of(3)
    for scale in (1.0, 1e-4):
        gradients = scale * (generator.standard_normal((50, 3)) + [0.0, 1.0, -2.0])
        fed(gradients, signal, gates)
        expected = np.abs(gradients.mean(0)) / gradients.std(0)
        assert signal.read() == pytest.approx(expected.tolist(), rel=1e-5)


def test_gradients_without_a_direction_give_the_stated_level():
    """E |mean| / std = sqrt(2 / (pi n)); over 2,000 gates its standard error is 2 %."""
    signal, gates = signal_of(2000)
    fed(np.random.default_rng(1).standard_normal((25, 2000)), signal, gates)
    assert float(np.mean(signal.read())) == pytest.approx(math.sqrt(2 / (math.pi * 25)), rel=0.08)


def test_nothing_is_claimed_without_two_different_gradients():
    signal, gates = signal_of(2)
    assert signal.read() == [None, None]
    fed(np.array([[1.0, 2.0]]), signal, gates)
    assert signal.read() == [None, None]
    fed(np.array([[1.0, 2.0], [1.0, 4.0]]), signal, gates)
    assert signal.read() == [None, pytest.approx(3.0)]
    for gate in gates:
        gate.grad = None  # as with the hard split
    signal.add()
    assert signal.read() == [None, None]


def test_state_goes_on_in_the_middle_of_a_window():
    gradients = np.random.default_rng(2).standard_normal((9, 2))
    whole, gates = signal_of(2)
    fed(gradients, whole, gates)
    first, gates = signal_of(2)
    fed(gradients[:4], first, gates)
    second, gates = signal_of(2)
    second.load_state_dict(first.state_dict())
    fed(gradients[4:], second, gates)
    assert second.read() == whole.read()
