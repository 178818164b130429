"""A yardstick's row: its own draw of documents, the bound by the networks' inequality, and mean losses beside it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.precision import with_tolerance
from sublora.bounds.selection import Sampling
from sublora.bounds.smoothing import LossRange, Smoothing
from sublora.coding.bits import Bits, bits_to_bytes
from sublora.system.streams import generator


@dataclass(frozen=True)
class Premises:
    """What a data set's yardsticks share with its networks."""

    vocab_size: int
    """V, the end-of-text token included."""
    eot_id: int
    n_units: int
    """n, the number of training units, documents or groups of them."""
    min_targets: int
    """T_min: targets of the shortest document the population admits, its end-of-text among them."""
    delta: float
    m: int | None
    """Units drawn with replacement and scored; None: all n are, and no draw needs a part of delta."""
    delta_sample: float | None
    """The part of delta for the draw; None if and only if m is."""
    data_hash: str
    smoothing: tuple[Smoothing, ...]
    val_documents: int
    test_documents: int

    def __post_init__(self) -> None:
        if not self.smoothing:
            raise ValueError("yardsticks need at least one smoothing candidate")
        if len({choice.name for choice in self.smoothing}) != len(self.smoothing):
            raise ValueError("the smoothing candidates must differ")
        if self.val_documents < 1 or self.test_documents < 1:
            raise ValueError("yardsticks need at least one val and one test document")
        if (self.m is None) != (self.delta_sample is None):
            raise ValueError("m and delta_sample belong together: give both or neither")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.n_units, self.delta, self.m, self.delta_sample)

    @property
    def ranges(self) -> list[LossRange]:
        """Loss range of each smoothing candidate."""
        return [self.range_of(choice) for choice in self.smoothing]

    def range_of(self, smoothing: Smoothing) -> LossRange:
        return smoothing.loss_range_bits(self.vocab_size, self.min_targets)

    def drawn_units(self, name: str, message: Bits) -> NDArray[np.int64]:
        """Indices of the training units that a yardstick is scored on: its own draw, or all n in order.

        The seed is sha256 over the yardstick's name, its frozen message (its length in bits, since the bytes are
        filled up) and the data's hash.
        """
        if self.m is None:
            return np.arange(self.n_units)
        stream = generator("yardstick", name, len(message), bits_to_bytes(message), self.data_hash)
        return stream.integers(0, self.n_units, size=self.m)


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
    """Of `Premises.drawn_units`."""
    val_losses_D: NDArray[np.float64]
    test_losses_D: NDArray[np.float64]


def yardstick_row(scored: Scored, premises: Premises, *, code_bits: Mapping[str, float], seconds: float) -> Row:
    """The row of a model with this message; its bound allows for rounding like the networks' (`with_tolerance`).

    Args:
        code_bits: C item by item, in bits; empty for a model that was fixed without the n documents.
        seconds: wall time the model took, scoring included.

    Raises:
        ValueError: the number of losses is not m (or n), or a loss lies outside its range.
    """
    n, delta, delta_sample = premises.n_units, premises.delta, premises.delta_sample
    expected = n if premises.m is None else premises.m
    if scored.losses_D.shape != (expected,):
        raise ValueError(f"losses of shape {scored.losses_D.shape}, expected those of {expected} documents")
    loss_range = premises.range_of(scored.smoothing)
    lower, upper = loss_range
    total = float(sum(code_bits.values()))
    if delta_sample is None:
        bound = betting(scored.losses_D, lower=lower, upper=upper, code_bits=total, n=n, delta=delta)
    else:
        bound = betting_subsampled(
            scored.losses_D, lower=lower, upper=upper, code_bits=total, n=n, delta=delta, delta_sample=delta_sample
        )
    return Row(
        bound_bits=with_tolerance(bound, loss_range),
        inequality=betting.__name__ if delta_sample is None else betting_subsampled.__name__,
        smoothing=scored.smoothing.name,
        loss_range_bits=[lower, upper],
        empirical_loss_bits=float(scored.losses_D.mean()),
        val_loss_bits=float(scored.val_losses_D.mean()),
        test_loss_bits=float(scored.test_losses_D.mean()),
        code_bits=total,
        code_bits_items=dict(code_bits),
        n=n,
        m=expected,
        delta=delta,
        delta_sample=delta_sample,
        seconds=seconds,
    )


def guessing_row(premises: Premises) -> Row:
    """Uniform guessing: its loss is log2 V on every document, so nothing is estimated and nothing can fail."""
    loss = math.log2(premises.vocab_size)
    return Row(
        bound_bits=loss,
        inequality=None,
        smoothing=None,
        loss_range_bits=[loss, loss],
        empirical_loss_bits=loss,
        val_loss_bits=loss,
        test_loss_bits=loss,
        code_bits=0.0,
        code_bits_items={},
        n=premises.n_units,
        m=None,
        delta=None,
        delta_sample=None,
        seconds=0.0,
    )
