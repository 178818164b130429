"""Training for the message: quantized weights in the forward pass, the price of their code in the objective.

The last phase of training minimizes what the bound is made of,

    loss of the quantized model at smoothing a  +  exchange rate x bits of the message,

with the loss of documents (not of tokens), a from the grid, and the exchange rate d bound / d C over
d bound / d loss. That is the rate-distortion objective of learned compression, applied to weights (Oktay et al.,
Scalable model compression by entropy penalized reparameterization, ICLR 2020). First the forward pass sees w plus
uniform noise as wide as a step in place of rounding (Balle, Laparra & Simoncelli, End-to-end optimized image
compression, ICLR 2017), and the step is learned. Then the step is frozen and the forward pass sees
round(w / step) step, gradients passing the rounding straight through (Bengio, Leonard & Courville 2013). The price
of a symbol is not a model of the code but the code's own: what one more symbol of that magnitude would cost after
the present ones, interpolated linearly between the integers, so that its slope pulls every coefficient to zero.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from sublora import config
from sublora.coding.bits import index_bits
from sublora.coding.entropy import EntropyWeights, ideal_message_bits, nearest_step_index, quantize_entropy, step_of
from sublora.coding.magnitudes import magnitude_bits
from sublora.data.dataset import TokenDataset
from sublora.device import to_device
from sublora.nn.language_model import LanguageModel
from sublora.nn.lora import Adapters
from sublora.random import generator
from sublora.training.bound_estimate import BoundEstimator, Estimate
from sublora.training.document_batches import training_documents
from sublora.training.host_copy import HostCopy

_NUMPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
PRICED_MAGNITUDES = 128
"""Magnitudes from here on are priced like this one in the objective; the message itself has no such limit."""


@dataclasses.dataclass(frozen=True)
class Rounded:
    """w as the message would hold it, and the bits of the payload it would make."""

    w: Tensor
    weights: EntropyWeights
    payload_bits: float


class CodePhase:
    """Batches, quantizer and prices of a training for the message. Its state travels in the resume state."""

    def __init__(
        self,
        settings: config.Settings,
        run: config.RunSpec,
        dataset: TokenDataset,
        model: LanguageModel,
        device: torch.device,
    ) -> None:
        training, self._phase = settings.training, settings.code_phase
        self._settings, self._seed, self._model = settings, run.seed, model
        self._gate_bits = sum(index_bits(size + 1) for size in model.subspace.gate_sizes)
        self.first_step = round((1.0 - self._phase.fraction) * training.steps)
        self.first_rounded_step = self.first_step + round(
            self._phase.noise_fraction * (training.steps - self.first_step)
        )
        self.sampler = training_documents(settings, run, dataset)
        self._estimator = BoundEstimator(settings, dataset, device)
        self.log_step = torch.nn.Parameter(torch.zeros((), device=device))
        """Natural logarithm of the quantization step."""
        self.smoothing = self._phase.smoothing
        """a in the training loss."""
        self.exchange_bits = 0.0
        """Loss, in bits per token, that one bit of message may cost: d bound / d C over d bound / d loss."""
        self.started = self.frozen = False
        self._frozen_step = math.nan

    @property
    def step(self) -> float:
        """The quantization step; once frozen exactly one that a message can name."""
        return self._frozen_step if self.frozen else math.exp(float(self.log_step.detach().double()))

    def is_due(self, step: int) -> bool:
        """Whether `prepare` has something to do before this step."""
        return (step >= self.first_step and not self.started) or (step >= self.first_rounded_step and not self.frozen)

    def is_finite(self) -> bool:
        """Whether w and its step can be rounded at all."""
        w_S = self._model.subspace.subspace_params
        return bool(torch.isfinite(w_S).all()) and math.isfinite(float(self.log_step.detach()))

    def prepare(self, step: int) -> None:
        """What falls due before this step: the phase starts, or rounding takes the place of noise."""
        if step >= self.first_step and not self.started:
            w = self._model.subspace.subspace_params.detach()
            # w may still be zero if the phase starts with the training.
            spread = float(w.double().std()) or self._settings.training.learning_rate
            self.log_step.data.fill_(math.log(self._phase.relative_step * spread))
            self.started = True
            self._choose()
        if step >= self.first_rounded_step and not self.frozen:
            # From here on symbols and step are those of the message.
            self._frozen_step = step_of(nearest_step_index(self.step))
            self.log_step.data.fill_(math.log(self._frozen_step))
            self.frozen = True
            self._choose()

    def forward(self, step: int) -> tuple[Tensor, "Price | None"]:
        """(w for the forward pass, what its bits will add to the objective); no bits before the phase."""
        w_S = self._model.subspace.subspace_params
        if not self.started:
            return w_S, None
        if self.frozen:
            used_S, exact_S = straight_through(w_S, self.step)
        else:
            noise = generator(self._seed, "quantization noise", step).random(len(w_S), dtype=np.float32) - 0.5
            used_S, exact_S = with_noise(w_S, self.log_step.exp(), to_device(noise, w_S.device))
        return used_S, Price(exact_S, self._phase.rate_factor * self.exchange_bits * math.log(2.0))

    def rounded(self) -> Rounded:
        """The present w, quantized as the message would hold it."""
        w_S = self._model.subspace.subspace_params
        weights = quantize_entropy(w_S.detach().cpu().double().numpy(), self.step)
        bits = float(ideal_message_bits(weights)) + self._gate_bits + index_bits(len(self._settings.scoring.smoothing))
        return Rounded(torch.from_numpy(weights.values()).to(w_S), weights, bits)

    def estimate(self, rounded: Rounded, adapters: Adapters) -> Estimate:
        """The bound to be expected from the rounded w, whose adapters these are."""
        return self._estimator.estimate(self._estimator.losses(self._model.base, adapters), rounded.payload_bits)

    @torch.no_grad()
    def _choose(self) -> None:
        """Smoothing and exchange rate from the estimated bound of the model as it is."""
        rounded, subspace = self.rounded(), self._model.subspace
        theta = functional_call(subspace, {"subspace_params": rounded.w}, (0.0,))
        estimate = self.estimate(rounded, self._model.adapters(theta))
        self.smoothing = self._settings.scoring.smoothing[estimate.smoothing_index]
        self.exchange_bits = estimate.exchange_bits

    def state(self) -> dict[str, Any]:
        """Plain values for the resume state; the step's moments are among the optimizer's."""
        return {
            "log_step": self.log_step.detach().cpu(),
            "smoothing": self.smoothing,
            "exchange_bits": self.exchange_bits,
            "started": self.started,
            "frozen": self.frozen,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.log_step.data.copy_(state["log_step"])
        self.smoothing, self.exchange_bits = state["smoothing"], state["exchange_bits"]
        self.started, self.frozen = state["started"], state["frozen"]
        self._frozen_step = step_of(nearest_step_index(math.exp(float(state["log_step"].double()))))


class Price:
    """What the bits of a step's coefficients add to the objective.

    The prices need the symbols on the host. On a GPU they travel while the network is at work: make the price before
    the forward pass, ask for it after the backward pass is queued.
    """

    def __init__(self, exact_S: Tensor, nats_per_bit: float) -> None:
        """`exact_S`: coefficients in steps, not yet rounded."""
        self._exact_S, self._nats_per_bit = exact_S, nats_per_bit
        self._host = HostCopy(exact_S)

    def is_finite(self) -> bool:
        """Whether the coefficients can be rounded at all."""
        return bool(np.isfinite(self._host.numpy()).all())

    def nats(self) -> Tensor:
        """The price (), differentiable."""
        symbols = np.round(self._host.numpy()).astype(np.int64)
        return self._nats_per_bit * symbol_bits(self._exact_S, symbols)


def with_noise(w_S: Tensor, step: Tensor, noise_S: Tensor) -> tuple[Tensor, Tensor]:
    """(w + step noise, the same in steps): shape (d) each, differentiable in w and the step; noise within +- 1/2."""
    noisy_S = w_S / step + noise_S
    return step * noisy_S, noisy_S


def straight_through(w_S: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """(step round(w / step), w / step): shape (d) each; gradients as if nothing were rounded."""
    exact_S = w_S / step
    rounded_S = torch.round(exact_S.detach()) * step
    return rounded_S + (w_S - w_S.detach()), exact_S


def symbol_bits(exact_S: Tensor, symbols_S: np.ndarray) -> Tensor:
    """Bits () of coefficients given in steps, shape (d): the prices that `symbols_S` imply, interpolated at |exact|.

    The symbols are the coefficients rounded. Exact for integers, up to what the adaptive code pays for learning; for
    others it lies between the neighbours.
    """
    bits = magnitude_bits(np.arange(PRICED_MAGNITUDES + 1), learned_from=symbols_S)
    prices = to_device(bits.astype(_NUMPY_TYPES[exact_S.dtype]), exact_S.device)
    magnitude_S = exact_S.abs().clamp(max=PRICED_MAGNITUDES - 1)
    below_S = magnitude_S.detach().long()
    return (prices[below_S] + (prices[below_S + 1] - prices[below_S]) * (magnitude_S - below_S)).sum()
