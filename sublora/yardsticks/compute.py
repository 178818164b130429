"""All yardsticks of a data set that need no network: choose on val, freeze the message, decode it, draw, score, bound.

Shapes: D documents, A smoothing candidates, B models of which one is chosen.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.selection import bound_slope_per_bit, choose_smoothing, estimated_bound
from sublora.coding.bits import Bits, index_bits, uint_to_bits
from sublora.data.dataset import TokenDataset
from sublora.yardsticks import unigram
from sublora.yardsticks.adaptive_code import BitCounter, MessageReader, MessageWriter, SymbolWriter
from sublora.yardsticks.bigram import STEPS_OCTAVES, Bigram
from sublora.yardsticks.documents import Predictor, TargetBatch, batches, losses_bits
from sublora.yardsticks.order3 import Order3
from sublora.yardsticks.pruning import BigramSearch, PairShares
from sublora.yardsticks.rows import Premises, Scored, guessing_row, yardstick_row
from sublora.yardsticks.statistics import pair_candidates, pair_shares, target_shares
from sublora.yardsticks.unigram import Unigram

PRICE_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4)
"""Prices of a bit that are tried, as multiples of the slope of the unigram's estimated bound."""

CHOICE_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class _Chosen:
    predictor: Predictor
    smoothing_index: int
    code_bits: float
    """Estimate, the smoothing's index included."""


class _Yardsticks:
    """The data and premises all yardsticks share."""

    def __init__(self, dataset: TokenDataset, premises: Premises) -> None:
        self.dataset, self.premises = dataset, premises
        self.val = self._documents("val", np.arange(premises.val_documents))
        self.test = self._documents("test", np.arange(premises.test_documents))

    def _documents(self, split: str, indices: NDArray[np.int64]) -> list[TargetBatch]:
        return list(self._stream(split, indices))

    def _stream(self, split: str, indices: NDArray[np.int64]):
        return batches((self.dataset.document(split, int(i)) for i in indices), self.premises.eot_id)

    def choose(self, candidates: Sequence[tuple[Predictor, float]]) -> _Chosen:
        """The model and smoothing of the smallest estimated bound on val.

        candidates: models and the bits of their messages. Model and smoothing are chosen in turn, each given the
        other, until neither changes.
        """
        premises, sampling, ranges = self.premises, self.premises.sampling, self.premises.ranges
        smoothing_bits = index_bits(len(premises.smoothing))
        losses_BDA = np.stack(
            [losses_bits(model, self.val, premises.smoothing, premises.vocab_size) for model, _ in candidates]
        )
        bits_B = [bits + smoothing_bits for _, bits in candidates]
        best, a = -1, -1
        for _ in range(CHOICE_ROUNDS):
            start = best if best >= 0 else int(np.argmin(losses_BDA.mean(axis=1).min(axis=1)))
            a = choose_smoothing(losses_BDA[start], ranges, code_bits=bits_B[start], sampling=sampling)
            estimates_B = [
                estimated_bound(losses_D, ranges[a], code_bits=bits, sampling=sampling)
                for losses_D, bits in zip(losses_BDA[:, :, a], bits_B, strict=True)
            ]
            best, before = int(np.argmin(estimates_B)), best
            if best == before:
                break
        a = choose_smoothing(losses_BDA[best], ranges, code_bits=bits_B[best], sampling=sampling)
        return _Chosen(candidates[best][0], a, bits_B[best])

    def price_of_a_bit(self, chosen: _Chosen) -> float:
        """What a bit of message costs, in bits per token of loss, near this model."""
        smoothing = self.premises.smoothing[chosen.smoothing_index]
        losses_D = losses_bits(chosen.predictor, self.val, [smoothing], self.premises.vocab_size)[:, 0]
        return bound_slope_per_bit(
            losses_D, self.premises.range_of(smoothing), code_bits=chosen.code_bits, sampling=self.premises.sampling
        )

    def row(
        self,
        name: str,
        predictor: Predictor,
        smoothing_index: int,
        message: Bits,
        code_bits: dict[str, float],
        since: float,
    ) -> dict[str, Any]:
        """Draw by the message, score, bound."""
        premises, smoothing = self.premises, self.premises.smoothing[smoothing_index]

        def scored(documents) -> NDArray[np.float64]:
            return losses_bits(predictor, documents, [smoothing], premises.vocab_size)[:, 0]

        drawn = self._stream("train", premises.drawn_documents(name, message))
        losses = Scored(smoothing, scored(drawn), val_losses_D=scored(self.val), test_losses_D=scored(self.test))
        return yardstick_row(losses, premises, code_bits=code_bits, seconds=time.perf_counter() - since)


def compute_yardsticks(dataset: TokenDataset, premises: Premises) -> dict[str, dict[str, Any]]:
    """Rows of guessing, coded unigram, coded bigram and order 3, by name.

    Two passes over the training split, in memory that does not grow with it, then the documents drawn.
    """
    shared = _Yardsticks(dataset, premises)
    rows = {"guessing": guessing_row(premises)}
    since = time.perf_counter()
    shares_V = target_shares(dataset)
    unigrams = [(model, _bits(model.write)) for model in unigram.candidates(shares_V, dataset.n_documents)]
    chosen = shared.choose(unigrams)
    rows["unigram"] = _coded_row(shared, "unigram", chosen, Unigram.read, since)
    since = time.perf_counter()
    chosen = shared.choose(_bigrams(shared, shares_V, chosen))
    rows["bigram"] = _coded_row(shared, "bigram", chosen, Bigram.read, since)
    since = time.perf_counter()
    middle = len(premises.smoothing) // 2
    nothing = np.zeros(0, dtype=np.uint8)
    rows["order3"] = shared.row("order3", Order3(premises.vocab_size), middle, nothing, {}, since)
    return rows


def _bigrams(shared: _Yardsticks, shares_V: NDArray[np.float64], chosen: _Chosen) -> list[tuple[Predictor, float]]:
    """Bigrams on the chosen unigram, of each step and price, with their bits."""
    assert isinstance(chosen.predictor, Unigram)
    contexts, successors = pair_candidates(shares_V)
    pairs, context_shares = pair_shares(shared.dataset, contexts, successors)
    targets = len(shared.dataset.tokens("train"))
    price = shared.price_of_a_bit(chosen)
    search = BigramSearch(
        PairShares(contexts, successors, pairs, context_shares, targets), chosen.predictor, price * min(PRICE_FACTORS)
    )
    unigram_bits = _bits(chosen.predictor.write)
    models = [
        search.bigram(step_index, price * factor)
        for step_index in range(len(STEPS_OCTAVES))
        for factor in PRICE_FACTORS
    ]
    return [(model, unigram_bits + _bits(model.write_tables)) for model in models]


def _bits(write: Callable[[SymbolWriter], None]) -> float:
    counter = BitCounter()
    write(counter)
    return counter.bits


def _coded_row(
    shared: _Yardsticks, name: str, chosen: _Chosen, read: Callable[[MessageReader, int], Predictor], since: float
) -> dict[str, Any]:
    """Freeze the message; what is scored is what its decoder reads."""
    message = frozen_message(chosen.predictor, chosen.smoothing_index, len(shared.premises.smoothing))
    reader = MessageReader(message)
    decoded = read(reader, shared.premises.vocab_size)
    model_bits = reader.finish()
    code_bits = {"model": float(model_bits), "smoothing": float(len(message) - model_bits)}
    return shared.row(name, decoded, chosen.smoothing_index, message, code_bits, since)


def frozen_message(predictor: Unigram | Bigram, smoothing_index: int, candidates: int) -> Bits:
    """The model, which ends itself, and the index of its smoothing among the candidates."""
    writer = MessageWriter()
    predictor.write(writer)
    return np.concatenate([writer.finish(), uint_to_bits(smoothing_index, index_bits(candidates))])
