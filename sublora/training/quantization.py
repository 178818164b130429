"""Quantization inside training: noise, or rounding that gradients pass, and the price of the coefficients' code.

The price of a symbol is not a model of the code but the code's own: what one more symbol of that magnitude would cost
after the present ones, interpolated linearly between the integers, so that its slope pulls every coefficient to zero.

Shape legend: S coefficients of w.
"""

import numpy as np
import torch
from torch import Tensor

from sublora.coding.magnitudes import magnitude_bits
from sublora.system.device import to_device
from sublora.training.exchange import HostCopy

_NUMPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
PRICED_MAGNITUDES = 128
"""Larger magnitudes are priced like this one in the objective; the message itself has no such limit."""


class Price:
    """The price of a step's coefficients in bits, which is added to the objective.

    The prices need the symbols on the host. A GPU copies them while the network is at work: make the object before the
    forward pass, and ask for the price after the backward pass is queued.
    """

    def __init__(self, exact_S: Tensor, nats_per_bit: float) -> None:
        """`exact_S`: coefficients in steps, not yet rounded."""
        self._exact_S, self._nats_per_bit = exact_S, nats_per_bit
        self._host = HostCopy(exact_S)

    def is_finite(self) -> bool:
        """Return whether all coefficients are finite, so that they can be rounded."""
        return bool(np.isfinite(self._host.numpy()).all())

    def nats(self) -> Tensor:
        """Return the price (), differentiable."""
        symbols_S = np.round(self._host.numpy()).astype(np.int64)
        return self._nats_per_bit * symbol_bits(self._exact_S, symbols_S)


def with_noise(w_S: Tensor, step: Tensor, noise_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return w + step noise (S), and the same in steps, differentiable in w and the step; noise lies within +- 1/2."""
    noisy_S = w_S / step + noise_S
    return step * noisy_S, noisy_S


def straight_through(w_S: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Return step round(w / step) and w / step, S each; gradients pass as if nothing were rounded."""
    exact_S = w_S / step
    rounded_S = torch.round(exact_S.detach()) * step
    return rounded_S + (w_S - w_S.detach()), exact_S


def symbol_bits(exact_S: Tensor, symbols_S: np.ndarray) -> Tensor:
    """Return the bits () of coefficients given in steps: the prices that `symbols_S` imply, interpolated at |exact|.

    The symbols are the rounded coefficients. For integers the bits are exact, up to what the adaptive code pays for
    learning; for other values they lie between those of the neighbours.
    """
    bits = magnitude_bits(np.arange(PRICED_MAGNITUDES + 1), learned_from=symbols_S)
    prices = to_device(bits.astype(_NUMPY_TYPES[exact_S.dtype]), exact_S.device)
    magnitude_S = exact_S.abs().clamp(max=PRICED_MAGNITUDES - 1)
    below_S = magnitude_S.detach().long()
    return (prices[below_S] + (prices[below_S + 1] - prices[below_S]) * (magnitude_S - below_S)).sum()
