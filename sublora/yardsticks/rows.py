"""A yardstick's row: its own draw of documents, the bound by the networks' inequality, and mean losses beside it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.premises import BoundedLoss, Premises, headline_bound
from sublora.bounds.smoothing import Smoothing, with_tolerance
from sublora.coding.bits import Bits, bits_to_bytes
from sublora.system.streams import generator


def drawn_units(name: str, message: Bits, premises: Premises, data_hash: str) -> NDArray[np.int64]:
    """Return the training units that a yardstick is scored on: indices of its own draw, or all n in order.

    The draw is seeded with sha256 of the yardstick's name, its frozen message (with its length in bits, since the last
    byte is filled up) and the data's hash.
    """
    if premises.m_units is None:
        return np.arange(premises.n_units)
    stream = generator("yardstick", name, len(message), bits_to_bytes(message), data_hash)
    return stream.integers(0, premises.n_units, size=premises.m_units)


class Row(TypedDict):
    """A row of yardsticks.json. Losses and bounds are in bits per token."""

    bound_bits: float
    inequality: str | None
    """Name in `sublora.bounds.inequalities`; None where nothing is estimated."""
    smoothing: str | None
    loss_range_bits: list[float]
    empirical_loss_bits: float
    """Mean over the units behind the bound."""
    val_loss_bits: float
    test_loss_bits: float
    """Means over val and test units, under the same smoothing."""
    code_bits: float
    code_bits_items: dict[str, float]
    """C, and C item by item."""
    n: int
    m: int | None
    """Units scored; None where none had to be."""
    delta: float | None
    delta_sample: float | None
    seconds: float
    """Wall time the yardstick took, scoring included."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Losses of one model under the smoothing chosen for it, bits per token, one per unit. D counts units here."""

    smoothing: Smoothing
    losses_D: NDArray[np.float64]
    """Losses of the units in `drawn_units`."""
    val_losses_D: NDArray[np.float64]
    test_losses_D: NDArray[np.float64]


def yardstick_row(scored: Scored, loss: BoundedLoss, *, code_bits: Mapping[str, float], seconds: float) -> Row:
    """The row of a model with this message; its bound allows for rounding like the networks' (`with_tolerance`).

    Args:
        code_bits: C item by item, in bits; empty for a model that was fixed without the n documents.
        seconds: wall time the model took, scoring included.

    Raises:
        ValueError: the number of losses is not m (or n), or a loss lies outside its range.
    """
    premises, loss_range = loss.premises, loss.range_of(scored.smoothing)
    expected = premises.n_units if premises.m_units is None else premises.m_units
    if scored.losses_D.shape != (expected,):
        raise ValueError(f"losses of shape {scored.losses_D.shape}, expected those of {expected} documents")
    total = float(sum(code_bits.values()))
    bound = headline_bound(scored.losses_D, loss_range, total, premises)
    return Row(
        bound_bits=with_tolerance(bound, loss_range),
        inequality=premises.headline,
        smoothing=scored.smoothing.name,
        loss_range_bits=list(loss_range),
        empirical_loss_bits=float(scored.losses_D.mean()),
        val_loss_bits=float(scored.val_losses_D.mean()),
        test_loss_bits=float(scored.test_losses_D.mean()),
        code_bits=total,
        code_bits_items=dict(code_bits),
        n=premises.n_units,
        m=expected,
        delta=premises.delta,
        delta_sample=premises.delta_sample,
        seconds=seconds,
    )


def guessing_row(loss: BoundedLoss) -> Row:
    """Return the row of uniform guessing, whose loss is log2 V on every document: nothing is estimated or can fail."""
    guessing_bits = math.log2(loss.vocab_size)
    return Row(
        bound_bits=guessing_bits,
        inequality=None,
        smoothing=None,
        loss_range_bits=[guessing_bits, guessing_bits],
        empirical_loss_bits=guessing_bits,
        val_loss_bits=guessing_bits,
        test_loss_bits=guessing_bits,
        code_bits=0.0,
        code_bits_items={},
        n=loss.premises.n_units,
        m=None,
        delta=None,
        delta_sample=None,
        seconds=0.0,
    )
