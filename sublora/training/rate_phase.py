"""The rate phase: quantized weights in the forward pass, and the price of their code in the objective.

The last phase of training minimizes what the bound consists of,

    smoothed loss of the quantized model  +  exchange rate x bits of the message,

with the loss of documents (not of tokens), the smoothing from the grid, and the exchange rate d bound / d C over
d bound / d loss. That is the rate-distortion objective of learned compression, applied to weights (Oktay et al.,
Scalable model compression by entropy penalized reparameterization, ICLR 2020). First the forward pass sees w plus
uniform noise as wide as a step in place of rounding (Balle, Laparra & Simoncelli, End-to-end optimized image
compression, ICLR 2017), and the step is learned. Then the step is frozen and the forward pass sees
round(w / step) step, gradients passing the rounding straight through (Bengio, Leonard & Courville 2013).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sublora.coding.bits import index_bits
from sublora.coding.quantizer import EntropyWeights, ideal_message_bits, nearest_step_index, quantize_entropy, step_of
from sublora.losses.estimate import Estimate
from sublora.losses.windows import BatchShape, DocumentSampler
from sublora.models.protocol import LanguageModel
from sublora.system.device import to_device
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.training.quantization import Price, straight_through, with_noise
from sublora.training.run import Run


@dataclasses.dataclass(frozen=True)
class Rounded:
    """w as the message would hold it, and the length of the payload."""

    w: Tensor
    weights: EntropyWeights
    payload_bits: float


@dataclasses.dataclass
class PhaseState:
    """What the phase has decided so far: plain values, so that they travel in the resume state."""

    smoothing: str
    """Name of the smoothing in the training loss."""
    exchange_bits: float = 0.0
    """The loss, in bits per token, that one bit of message is worth: d bound / d C over d bound / d loss."""
    started: bool = False
    frozen: bool = False
    """Whether w is rounded, with a step that no longer changes."""


class RatePhase:
    """Batches, quantizer and prices of a training whose objective is the bound."""

    def __init__(self, run: Run) -> None:
        training, self._settings = run.settings.training, run.settings.rate_phase
        self._run = run
        self._gate_bits = sum(index_bits(gate.size + 1) for gate in run.subspace.gates)
        self.first_step = self._settings.first_step(training.steps)
        self.first_rounded_step = self._settings.first_rounded_step(training.steps)
        self.sampler = training_documents(run)
        self._estimator = run.estimator()
        self.log_step = torch.nn.Parameter(torch.zeros((), device=run.device))
        """Natural logarithm of the quantization step."""
        self.state = PhaseState(self._settings.smoothing)
        self._frozen_step = math.nan

    @property
    def step(self) -> float:
        """The quantization step; once frozen, exactly one that a message can name."""
        return self._frozen_step if self.state.frozen else float(self.log_step.detach().double().exp())

    def is_due(self, step: int) -> bool:
        """Return whether `prepare` has something to do before this step."""
        started, frozen = self.state.started, self.state.frozen
        return (step >= self.first_step and not started) or (step >= self.first_rounded_step and not frozen)

    def is_finite(self) -> bool:
        """Return whether w and its quantization step are finite."""
        w_S = self._run.subspace.subspace_params
        return bool(torch.isfinite(w_S).all()) and math.isfinite(float(self.log_step.detach()))

    def prepare(self, step: int) -> None:
        """Do what is due before this step: start the phase, or let rounding take the place of noise."""
        if step >= self.first_step and not self.state.started:
            w = self._run.subspace.subspace_params.detach()
            # w may still be zero if the phase starts with the training, and a single number has no spread.
            spread = float(w.double().std()) if len(w) > 1 else float(w.abs())
            spread = spread or self._run.settings.training.learning_rate
            self.log_step.data.fill_(math.log(self._settings.relative_step * spread))
            self.state.started = True
            self._choose()
        if step >= self.first_rounded_step and not self.state.frozen:
            # From here on symbols and step are those of the message.
            self._frozen_step = self._nearest_step()
            self.log_step.data.fill_(math.log(self._frozen_step))
            self.state.frozen = True
            self._choose()

    def _nearest_step(self) -> float:
        try:
            return step_of(nearest_step_index(self.step))
        except ValueError as error:
            raise self._outside_the_code(error) from None

    def _outside_the_code(self, error: ValueError) -> UserError:
        return UserError(
            f"{self._run.spec.name}: no message can hold w as the rate phase left it ({error}); lower "
            "rate_phase.step_learning_rate, bring rate_phase.relative_step nearer to 1, or lower training.learning_rate"
        )

    def forward(self, step: int) -> tuple[Tensor, Price | None]:
        """Return w for the forward pass (S), and the price of its bits; None before the phase starts."""
        w_S = self._run.subspace.subspace_params
        if not self.state.started:
            return w_S, None
        if self.state.frozen:
            used_S, exact_S = straight_through(w_S, self.step)
        else:
            stream = generator(self._run.spec.seed, "quantization noise", step)
            noise = stream.random(len(w_S), dtype=np.float32) - 0.5
            used_S, exact_S = with_noise(w_S, self.log_step.exp(), to_device(noise, w_S.device))
        return used_S, Price(exact_S, self._settings.rate_factor * self.state.exchange_bits * math.log(2.0))

    def rounded(self) -> Rounded:
        """Return the present w, quantized as the message would hold it; UserError if no message can hold it."""
        w_S = self._run.subspace.subspace_params
        try:
            weights = quantize_entropy(w_S.detach().cpu().double().numpy(), self.step)
        except ValueError as error:
            raise self._outside_the_code(error) from None
        bits = float(ideal_message_bits(weights)) + self._gate_bits
        bits += index_bits(len(self._run.settings.scoring.smoothing))
        return Rounded(torch.from_numpy(weights.values()).to(w_S), weights, bits)

    def estimate(self, rounded: Rounded, model: LanguageModel) -> Estimate:
        """Return the estimated bound of the rounded w, whose model is given."""
        return self._estimator.estimate(self._estimator.losses(model), rounded.payload_bits)

    @torch.no_grad()
    def _choose(self) -> None:
        """Set smoothing and exchange rate by the estimated bound of the present model."""
        rounded = self.rounded()
        estimate = self.estimate(rounded, self._run.model_at(rounded.w))
        self.state.smoothing = self._run.settings.scoring.smoothing[estimate.smoothing_index]
        self.state.exchange_bits = estimate.exchange_bits

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the resume state; the moments of the step are among the optimizer's."""
        return {"log_step": self.log_step.detach().cpu(), **dataclasses.asdict(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log_step.data.copy_(state["log_step"])
        self.state = PhaseState(**{name: value for name, value in state.items() if name != "log_step"})
        if self.state.frozen:
            self._frozen_step = step_of(nearest_step_index(math.exp(float(state["log_step"].double()))))


def training_documents(run: Run, windows: int | None = None) -> DocumentSampler:
    """Return the sampler of the windows of a run that trains for its message; `windows` of a step, if not all."""
    training, compute, context = run.settings.training, run.settings.compute, run.settings.model.context_length
    shape = BatchShape(
        windows or training.tokens_per_step // context,
        training.micro_batch_sequences,
        processes=compute.gpus_per_training,
        one_width=compute.compile,
    )
    return DocumentSampler(
        run.dataset.tokens("train"),
        run.dataset.eot_indices,
        run.windows,
        units=run.dataset.units("train"),
        eot_id=run.dataset.eot_id,
        shape=shape,
        seed_parts=(run.spec.seed, "train documents"),
    )
