"""Looking at a training: losses on fixed chunks of train and val, and what its message would be worth now."""

import dataclasses
import math

import torch

from sublora.losses.samplers import evaluation_chunks
from sublora.models.protocol import LanguageModel
from sublora.training.rate_phase import RatePhase
from sublora.training.resumable import NonFinite
from sublora.training.run import Run

BITS_PER_NAT = 1.0 / math.log(2.0)

Facts = dict[str, float]
"""Measurements by name, with their unit in it."""


@dataclasses.dataclass(frozen=True)
class Look:
    """The model as it would be used now, and in the rate phase the code and the estimated bound it would have."""

    model: LanguageModel
    facts: Facts


@torch.no_grad()
def look(run: Run, rate: RatePhase | None, mask_width: float) -> Look:
    """The present model; in the rate phase the quantized one."""
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
    """train_loss_bits and val_loss_bits: mean loss per token over fixed, evenly spread chunks. Raises NonFinite."""
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
