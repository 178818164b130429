"""Measure a training: losses on fixed chunks of train and val, what its message would be worth now, gate gradients."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sublora.losses.windows import evaluation_chunks
from sublora.models.protocol import LanguageModel
from sublora.training.rate_phase import RatePhase
from sublora.training.resumable import NonFinite
from sublora.training.run import Run

BITS_PER_NAT = 1.0 / math.log(2.0)

Facts = dict[str, float]
"""Measurements by name, with their unit in it."""


@dataclasses.dataclass(frozen=True)
class Look:
    """The model as it would be used now, with the code and the estimated bound that it would have in the rate phase."""

    model: LanguageModel
    facts: Facts
    """Empty before the rate phase."""


@torch.no_grad()
def look(run: Run, rate: RatePhase | None, mask_width: float) -> Look:
    """Return the present model; in the rate phase the quantized one."""
    if rate is None or not rate.state.started:
        return Look(run.model_at(run.subspace.subspace_params, mask_width), {})
    rounded = rate.rounded()
    model = run.model_at(rounded.w, mask_width)
    return Look(
        model,
        {
            "code_bits": rounded.payload_bits,
            "estimated_bound_bits": rate.estimate(rounded, model).bound_bits,
            "quantization_step": rate.step,
        },
    )


@torch.no_grad()
def token_losses(run: Run, model: LanguageModel) -> Facts:
    """Return train_loss_bits and val_loss_bits, mean losses per token over fixed, evenly spread chunks.

    Raises:
        NonFinite: a loss is infinite or not a number.
    """
    losses = {f"{split}_loss_bits": _chunk_loss_bits(run, model, split) for split in ("train", "val")}
    if not all(math.isfinite(value) for value in losses.values()):
        raise NonFinite
    return losses


def _chunk_loss_bits(run: Run, model: LanguageModel, split: str) -> float:
    training, context = run.settings.training, run.settings.model.context_length
    total, sequences = torch.zeros((), device=run.device), 0
    tokens = run.dataset.tokens(split)
    for batch in evaluation_chunks(tokens, context, training.eval_sequences, training.micro_batch_sequences):
        inputs, targets = (torch.from_numpy(part).to(run.device) for part in batch)
        loss = model.cross_entropy(model.hidden(inputs).flatten(0, 1), targets.flatten())
        total += loss * inputs.shape[0]
        sequences += inputs.shape[0]
    return float(total) / sequences * BITS_PER_NAT


class GateSignal:
    """Signal-to-noise ratio of each gate's gradient, |mean| / standard deviation over the steps since the last reading.

    Gradients whose mean is zero give about sqrt(2 / (pi n)) over n steps. Shape legend: G gates.
    """

    def __init__(self, gates: list[torch.nn.Parameter], device: torch.device) -> None:
        self._gates = gates
        self._sums_2G = torch.zeros(2, len(gates), dtype=torch.float64, device=device)
        """Sums of the gradients and of their squares."""
        self._steps = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the present gradients; with a hard split gates have none."""
        gradients: list[Tensor] = [gate.grad for gate in self._gates if gate.grad is not None]
        if gradients:
            gradients_G = torch.stack(gradients).double()
            self._sums_2G += torch.stack([gradients_G, gradients_G.square()])
            self._steps += 1

    def read(self) -> list[float | None]:
        """Return the ratio of each gate, None after fewer than two steps or equal gradients; and start afresh."""
        mean_G, square_G = self._sums_2G.cpu() / max(1, self._steps)
        std_G = (square_G - mean_G.square()).clamp(min=0.0).sqrt()
        enough = self._steps > 1
        self._sums_2G.zero_()
        self._steps = 0
        pairs = zip(mean_G.abs().tolist(), std_G.tolist(), strict=True)
        return [mean / std if enough and std > 0.0 else None for mean, std in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums_2G.cpu(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums_2G.copy_(state["sums"])
        self._steps = state["steps"]
