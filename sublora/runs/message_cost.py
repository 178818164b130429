"""The length of a run's message, predicted before anything is trained, for `plan`, `plan --loss` and `train`.

This module does not import torch.
"""

import dataclasses
import math

import numpy as np

from sublora import config
from sublora.bounds.premises import Premises
from sublora.bounds.selection import estimated_bound
from sublora.coding.bits import index_bits
from sublora.coding.magnitudes import MAX_COEFFICIENTS
from sublora.coding.quantizer import CODEBOOK_ENTRY_BITS, PLAIN, STEP_BITS
from sublora.data.dataset import TokenDataset
from sublora.losses.bounded import bounded_loss
from sublora.runs.message import charged_bits, payload_context
from sublora.system.errors import UserError

GAUSSIAN_BITS = 0.5 * math.log2(2.0 * math.pi * math.e)
"""Differential entropy of a Gaussian with standard deviation 1; in steps of s it takes about log2(1 / s) bits more."""
ABSURD_SHARE = 0.5
"""A share of the loss of guessing; a training warns if even a perfect model's bound is above it."""


@dataclasses.dataclass(frozen=True)
class MessageCost:
    """The cost of a message with d coefficients, and the best bound that its length allows."""

    dimension: int
    """d, the number of coefficients."""
    bits: float
    """C, before training makes the message shorter."""
    lowest_bound_bits: float
    """The bound, bits per token, of a model that predicts every token with certainty.

    Only the coordinates are charged, and all n units are assumed to be scored.
    """
    guessing_bits: float

    @property
    def is_absurd(self) -> bool:
        return self.lowest_bound_bits > ABSURD_SHARE * self.guessing_bits

    def __str__(self) -> str:
        return (
            f"w has {self.dimension:,} coordinates, a message of about {self.bits:,.0f} bits unless training shortens "
            f"it: even with a training loss of 0 the bound would be {self.lowest_bound_bits:.2f} bits per token "
            f"(guessing: {self.guessing_bits:.2f})"
        )


def bits_per_coefficient(settings: config.Settings) -> float:
    """Return the bits per coefficient at the start: of a quantized Gaussian, or the maximum for the plain levels."""
    if settings.message.quantizer == PLAIN:
        return math.log2(settings.message.levels)
    return max(GAUSSIAN_BITS - math.log2(settings.rate_phase.relative_step), 0.1)


def code_bits(settings: config.Settings, dimension: int, bits_per_coordinate: float) -> float:
    """Return C for d = `dimension` with the given bits per coordinate, the largest over the grid.

    It is charged as a message's C is. The items other than the symbols follow from the settings, so nothing is
    encoded, however large d is.
    """
    # Count the items of a message for each allocation.
    totals = []
    for allocation in settings.grid.allocations:
        # More coordinates than a budget may have are those of a run with all parameters.
        budget = dimension if dimension <= MAX_COEFFICIENTS else config.ALL
        spec = config.RunSpec(budget=budget, allocation=allocation, seed=settings.grid.seeds[0])
        context = payload_context(settings, spec, dimension)
        is_plain = context.quantizer == PLAIN
        items = {
            "codebook": CODEBOOK_ENTRY_BITS * context.levels if is_plain else STEP_BITS,
            "counts": context.levels * index_bits(dimension + 1) if is_plain else 0,
            "symbols": round(bits_per_coordinate * dimension),
            "gates": sum(index_bits(size + 1) for size in context.gate_sizes),
            "smoothing": index_bits(context.smoothing_count),
        }
        # The plain scheme writes the number of bits that follow in Elias' gamma code.
        items["length"] = 2 * (sum(items.values()).bit_length() - 1) + 1 if is_plain else 0
        totals.append(charged_bits(items, settings)[0])
    return max(totals)


def message_cost(settings: config.Settings, dimension: int, dataset: TokenDataset) -> MessageCost:
    """Predict C for d = `dimension`, and the lowest bound that a message of that length allows."""
    loss = bounded_loss(
        settings, vocab_size=dataset.vocab_size, n_units=dataset.n_units, n_documents=dataset.n_documents
    ).direct
    bits = code_bits(settings, dimension, bits_per_coefficient(settings))
    # Only the coordinates are charged here: the other items do not depend on d.
    symbol_bits = dimension * bits_per_coefficient(settings)
    premises = Premises(loss.premises.n_units, loss.premises.delta)
    perfect = [
        estimated_bound(np.full(100, range_.lower), range_, code_bits=symbol_bits, premises=premises)
        for range_ in loss.ranges
    ]
    return MessageCost(dimension, bits, min(perfect), math.log2(dataset.vocab_size))


def check_message(settings: config.Settings, cost: MessageCost) -> None:
    """Raise UserError if no message can hold that many coefficients."""
    if settings.message.quantizer != PLAIN and cost.dimension > MAX_COEFFICIENTS:
        raise UserError(
            f"{cost}, and the entropy code holds at most {MAX_COEFFICIENTS:,} coordinates; train a subspace "
            "(subspace.projection kronecker_feistel)"
        )
