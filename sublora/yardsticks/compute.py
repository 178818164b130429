"""All yardsticks of a dataset that need no network: choose on val, freeze the message, decode it, draw, score, bound.

Shapes: D documents, U units, A smoothing candidates, B models of which one is chosen.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.premises import BoundedLoss
from sublora.bounds.selection import bound_slope_per_bit, choose_smoothing, estimated_bound
from sublora.bounds.smoothing import Smoothing
from sublora.coding.bits import Bits, index_bits, uint_to_bits
from sublora.data.dataset import TokenDataset
from sublora.data.units import Units
from sublora.yardsticks import unigram
from sublora.yardsticks.adaptive_code import BitCounter, MessageReader, MessageWriter, SymbolWriter
from sublora.yardsticks.bigram import Bigram, BigramSearch
from sublora.yardsticks.order3 import Order3
from sublora.yardsticks.record import (
    BIGRAM,
    GUESSING,
    ORDER3,
    UNIGRAM,
    Row,
    Scored,
    drawn_units,
    guessing_row,
    yardstick_row,
)
from sublora.yardsticks.targets import (
    NextTokenModel,
    TargetBatch,
    batches,
    losses_bits,
    pair_candidates,
    pair_shares,
    target_shares,
)
from sublora.yardsticks.unigram import Unigram

PRICE_FACTORS = (0.7, 1.0, 1.4)
"""Prices of a bit to try, as multiples of the slope of the unigram's estimated bound."""

STEP_INDICES = (1, 2)
"""Indices of the bigram's steps to try."""

SHORTER_UNIGRAMS = 10
LENGTH_RATIO = 0.93
"""A bigram may also use unigrams shorter than the best one, each at most this share of the next longer one."""

CHOICE_ROUNDS = 4


def compute_yardsticks(
    dataset: TokenDataset, loss: BoundedLoss, *, val_documents: int, test_documents: int
) -> dict[str, Row]:
    """Return the rows of guessing, unigram, bigram and order3 for a dataset.

    Two passes over the training split, in memory that does not grow with it, then the documents drawn.

    Args:
        loss: the loss of the networks that are trained on this dataset.
        val_documents, test_documents: numbers of val and test documents to score, rounded up to whole units.

    Raises:
        ValueError: the loss belongs to another dataset, a document is shorter than the loss admits, or no val or test
            document is to be scored.
    """
    _check_fits(dataset, loss)
    if val_documents < 1 or test_documents < 1:
        raise ValueError("yardsticks need at least one val and one test document")
    stage = _Stage(dataset, loss, val_documents=val_documents, test_documents=test_documents)
    rows: dict[str, Row] = {GUESSING: guessing_row(loss)}

    # Unigrams of every resolution compete on val.
    since = time.perf_counter()
    shares_V = target_shares(dataset)
    unigrams = [(model, _bits(model.write)) for model in unigram.candidates(shares_V, dataset.n_units)]
    best, smoothing = stage.choose(unigrams)
    rows[UNIGRAM] = stage.row(UNIGRAM, stage.freeze(unigrams[best][0], smoothing), since)

    # Bigrams compete as well, based on the best unigram and on shorter ones, pruned at several prices of a bit.
    since = time.perf_counter()
    bases = _shortened(unigrams, best, stage.val_losses_UB([model for model, _ in unigrams], smoothing).mean(axis=0))
    bigrams = _bigrams(dataset, shares_V, bases, stage.price_of_a_bit(*unigrams[best], smoothing))
    best, smoothing = stage.choose(bigrams)
    rows[BIGRAM] = stage.row(BIGRAM, stage.freeze(bigrams[best][0], smoothing), since)

    # The adaptive model has no message: its smoothing is the middle candidate, whatever the data.
    since = time.perf_counter()
    order3 = Frozen(Order3(loss.vocab_size), len(loss.candidates) // 2, np.zeros(0, dtype=np.uint8), {})
    rows[ORDER3] = stage.row(ORDER3, order3, since)
    return rows


@dataclass(frozen=True, eq=False)
class Frozen:
    """A model that no longer changes, decoded from its message."""

    predictor: NextTokenModel
    smoothing_index: int
    message: Bits
    code_bits: Mapping[str, float]
    """The items of C; they sum to the message's length."""


def frozen_message(model: Unigram | Bigram, smoothing_index: int, candidates: int) -> Bits:
    """Return the message: the model, whose code is self-delimiting, and the index of its smoothing."""
    writer = MessageWriter()
    model.write(writer)
    return np.concatenate([writer.finish(), uint_to_bits(smoothing_index, index_bits(candidates))])


class GroupedTargets(NamedTuple):
    """Documents in batches, and their grouping into units."""

    batches: Iterable[TargetBatch]
    units: Units


class _Stage:
    """The documents, premises and choices that all yardsticks share."""

    def __init__(self, dataset: TokenDataset, loss: BoundedLoss, *, val_documents: int, test_documents: int) -> None:
        self._dataset, self._loss = dataset, loss
        self._val, self._test = (
            GroupedTargets(list(self._targets(split, documents_D)), units)
            for split, (documents_D, units) in (
                ("val", dataset.leading_units("val", val_documents)),
                ("test", dataset.leading_units("test", test_documents)),
            )
        )

    def _targets(self, split: str, documents_D: NDArray[np.int64]) -> Iterator[TargetBatch]:
        return batches((self._dataset.document(split, int(i)) for i in documents_D), self._dataset.eot_id)

    def _losses_U(
        self, predictor: NextTokenModel, scored: "GroupedTargets", smoothing_index: int
    ) -> NDArray[np.float64]:
        return self._losses_UA(predictor, scored, [self._loss.candidates[smoothing_index]])[:, 0]

    def _losses_UA(
        self, predictor: NextTokenModel, scored: "GroupedTargets", smoothing: Sequence[Smoothing]
    ) -> NDArray[np.float64]:
        losses_DA = losses_bits(predictor, scored.batches, smoothing, self._loss.vocab_size)
        return scored.units.means(losses_DA)

    def val_losses_UB(self, models: Sequence[NextTokenModel], smoothing_index: int) -> NDArray[np.float64]:
        """Return the losses of the val units under each of the models, shape (U, B)."""
        return np.stack([self._losses_U(model, self._val, smoothing_index) for model in models], axis=1)

    def choose(self, candidates: Sequence[tuple[NextTokenModel, float]]) -> tuple[int, int]:
        """Return the indices of the model and the smoothing that together have the smallest estimated bound on val.

        candidates: models and the bits of their messages. Model and smoothing are chosen alternately, each given the
        other, until neither changes, at most CHOICE_ROUNDS times: estimating the bound for every pair would take longer
        than everything else.
        """
        loss = self._loss
        losses_BUA = np.stack([self._losses_UA(model, self._val, loss.candidates) for model, _ in candidates])
        bits_B = [bits + index_bits(len(loss.candidates)) for _, bits in candidates]
        # Start from the model with the smallest mean loss, and alternate.
        best = int(np.argmin(losses_BUA.mean(axis=1).min(axis=1)))
        smoothing = -1
        for _ in range(CHOICE_ROUNDS):
            before = best, smoothing
            smoothing = choose_smoothing(losses_BUA[best], loss, code_bits=bits_B[best])
            if (best, smoothing) == before:
                break
            estimates_B = [
                estimated_bound(losses_D, loss.ranges[smoothing], code_bits=bits, premises=loss.premises)
                for losses_D, bits in zip(losses_BUA[:, :, smoothing], bits_B, strict=True)
            ]
            best = int(np.argmin(estimates_B))
        return best, smoothing

    def price_of_a_bit(self, model: NextTokenModel, code_bits: float, smoothing_index: int) -> float:
        """Return what one bit of message costs near this model, in bits per token of loss."""
        return bound_slope_per_bit(
            self._losses_U(model, self._val, smoothing_index),
            self._loss.ranges[smoothing_index],
            code_bits=code_bits,
            premises=self._loss.premises,
        )

    def freeze(self, model: Unigram | Bigram, smoothing_index: int) -> Frozen:
        """Encode a model and its smoothing, and return what the decoder makes of the message."""
        message = frozen_message(model, smoothing_index, len(self._loss.candidates))
        reader = MessageReader(message)
        decoded = type(model).read(reader, self._loss.vocab_size)
        model_bits = reader.finish()
        code_bits = {"model": float(model_bits), "smoothing": float(len(message) - model_bits)}
        return Frozen(decoded, smoothing_index, message, code_bits)

    def row(self, name: str, frozen: Frozen, since: float) -> Row:
        """Draw with the message as seed, score and bound; `since` is the `time.perf_counter()` when the work began."""
        units_U = drawn_units(name, frozen.message, self._loss.premises, self._dataset.data_hash)
        documents_D, units = self._dataset.units("train").take(units_U)
        drawn = GroupedTargets(self._targets("train", documents_D), units)
        scored = Scored(
            smoothing=self._loss.candidates[frozen.smoothing_index],
            losses_D=self._losses_U(frozen.predictor, drawn, frozen.smoothing_index),
            val_losses_D=self._losses_U(frozen.predictor, self._val, frozen.smoothing_index),
            test_losses_D=self._losses_U(frozen.predictor, self._test, frozen.smoothing_index),
        )
        return yardstick_row(scored, self._loss, code_bits=frozen.code_bits, seconds=time.perf_counter() - since)


def _check_fits(dataset: TokenDataset, loss: BoundedLoss) -> None:
    """Raise ValueError unless the loss belongs to this dataset."""
    given = {"vocab_size": loss.vocab_size, "n_units": loss.premises.n_units}
    for name, found in given.items():
        if found != (expected := getattr(dataset, name)):
            raise ValueError(f"premises with {name} {found} for a dataset with {expected}")
    shortest = 1 + int(min(dataset.document_lengths(split).min() for split in ("train", "val", "test")))
    if shortest < loss.min_targets:
        raise ValueError(f"a document has {shortest} targets, the premises admit none below {loss.min_targets}")


def _shortened(
    unigrams: Sequence[tuple[Unigram, float]], best: int, loss_B: NDArray[np.float64]
) -> list[tuple[Unigram, float]]:
    """Return the best unigram and shorter ones, of each length the one with the smallest loss; longest first."""
    chosen = [unigrams[best]]
    while len(chosen) <= SHORTER_UNIGRAMS:
        shorter = [b for b, (_, bits) in enumerate(unigrams) if bits <= LENGTH_RATIO * chosen[-1][1]]
        if not shorter:
            break
        chosen.append(unigrams[min(shorter, key=loss_B.__getitem__)])
    return chosen


def _bigrams(
    dataset: TokenDataset, shares_V: NDArray[np.float64], bases: Sequence[tuple[Unigram, float]], price: float
) -> list[tuple[Bigram, float]]:
    """Return bigrams with each step and price on each of the unigrams, with the bits of their messages."""
    counted = pair_shares(dataset, *pair_candidates(shares_V))
    models = []
    for base, base_bits in bases:
        search = BigramSearch(counted, base, price * min(PRICE_FACTORS))
        for step_index in STEP_INDICES:
            for factor in PRICE_FACTORS:
                model = search.bigram(step_index, price * factor)
                models.append((model, base_bits + _bits(model.write_tables)))
    return models


def _bits(write: Callable[[SymbolWriter], None]) -> float:
    """Return the bits that a message would have, without writing it."""
    counter = BitCounter()
    write(counter)
    return counter.bits
