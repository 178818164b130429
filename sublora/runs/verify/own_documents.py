"""Bounds from documents of the verifier's own choosing: a new draw of the training documents, or test documents.

Neither rests on what the prover did with the documents that bounds.json speaks of.
"""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.anchor import FailureShare
from sublora.bounds.anchored_record import AnchoredSample, Charges, anchored_bound
from sublora.bounds.checks import DRAW_SHARE
from sublora.bounds.premises import headline_bound, held_out_bound
from sublora.bounds.smoothing import with_tolerance
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import SPLITS
from sublora.data.tokenizers import TOKENIZER_FILE
from sublora.runs.message import Message, charged_bits
from sublora.runs.score import Predictor, record_units
from sublora.runs.verify.checks import split_facts
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.training.run import Run


def bound_of_own_draw(run: Run, predictor: Predictor, message: Message, count: int, nonce: str) -> float:
    """Return the headline bound from losses of `count` training units that the verifier drew, bits per token.

    The draw depends on the certificate and on a text that was chosen after it was handed over, so no luck of the prover
    is in it; the rest is as for `bound_value`. With an anchor the same draw serves both parts of the sum.
    """
    premises = dataclasses.replace(
        message.loss.premises, m_units=count, delta_sample=message.settings.bound.delta_sample
    )
    stream = generator("a verifier's documents", nonce, message.certificate_sha256)
    drawn = record_units(run, predictor, "train", stream.integers(0, premises.n_units, size=count))
    code_bits, items = charged_bits(message.payload.items, message.settings)
    anchoring, mixture = message.loss.anchoring, message.mixture
    if anchoring is None or mixture is None:
        loss_range = message.loss.range_of(message.smoothing)
        return with_tolerance(headline_bound(drawn.losses_U, loss_range, code_bits, premises), loss_range)
    sample = AnchoredSample(
        drawn.losses_U - drawn.excess_U,
        drawn.excess_U,
        premises.n_units,
        _share_with_draw(anchoring.delta_base, anchoring.delta_base_sample),
        _share_with_draw(anchoring.delta_excess, anchoring.delta_excess_sample),
    )
    charges = Charges.of(items, premises.sweep_size)
    return anchored_bound(sample, mixture, charges, message.loss.population).bits


def _share_with_draw(delta: float, delta_sample: float | None) -> FailureShare:
    """Return a part of delta with what its draw may take: the settings' own part, where they drew nothing 9 tenths."""
    return FailureShare(delta, DRAW_SHARE * delta if delta_sample is None else delta_sample)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnDocuments:
    """The test documents of a dataset that the verifier has prepared.

    Shape legend: U units.
    """

    dataset: TokenDataset
    units_U: NDArray[np.int64]
    """Its test units without those that hold a text of the claim's data, which the prover had."""
    trusted: tuple[str, ...]
    """What a bound from them rests on, in words."""

    @classmethod
    def open(cls, folder: Path, claimed: TokenDataset, min_tokens: int) -> "OwnDocuments":
        """Open the folder of a dataset. claimed: the data of the claim; min_tokens: of the claim's population.

        Raises:
            UserError: the folder is not that of a prepared dataset, its tokens or units are of another kind than the
                claim's, a test document is shorter than the claim's population admits, or the claim's data hold them
                all.
        """
        dataset = TokenDataset.open_folder(folder, None)
        _check_kind(dataset, claimed, min_tokens)
        dataset.verify_hashes()
        # The prover had every text of the claim's data; document digests are compared, 8 bytes each.
        known = np.concatenate([split_facts(claimed, split).digests_D for split in SPLITS])
        had_D = np.isin(split_facts(dataset, "test").digests_D, known)
        grouping = dataset.units("test")
        units_U = np.flatnonzero(grouping.means(had_D.astype(np.float64)) == 0.0)
        if not len(units_U):
            raise UserError(
                f"--test-data {folder}: all of its {len(grouping)} test {dataset.unit}s have a text that is in the "
                "claim's data, which the prover had; prepare documents of your own"
            )
        left_out = len(grouping) - len(units_U)
        what = f"{len(units_U)} test {dataset.unit}s of {folder} ({left_out} left out for a text of the claim's data)"
        trusted = [f"for bound_own_test: that the {what} are independent draws which the prover did not have"]
        if claimed.excluded_texts not in (None, dataset.excluded_texts):
            trusted.append("for bound_own_test: that none of its documents is a text of the base's corpus")
        return cls(dataset, units_U, tuple(trusted))

    def numbers(self, run: Run, predictor: Predictor, message: Message) -> dict[str, float | None]:
        """Return the number of units, their mean loss and the bound from them, bits per token.

        The bound is `held_out_bound` on the loss itself, with an anchor too: without a message there is nothing that
        a smaller range would save, and the base's losses on the claim's own documents are left out of it.
        """
        own = record_units(dataclasses.replace(run, dataset=self.dataset), predictor, "test", self.units_U)
        loss_range = message.loss.range_of(message.smoothing)
        bound = held_out_bound(own.losses_U, loss_range, delta=message.loss.premises.delta)
        return {
            "own_test_units": float(len(self.units_U)),
            "own_test_loss_bits": float(np.mean(own.losses_U)),
            "bound_own_test": with_tolerance(bound, loss_range),
        }


def _check_kind(dataset: TokenDataset, claimed: TokenDataset, min_tokens: int) -> None:
    """UserError unless a network that was made for the claimed data can be scored on the dataset's test documents."""
    files = (each.meta.files.get(TOKENIZER_FILE) for each in (dataset, claimed))
    pairs = {
        "tokenizer": (dataset.tokenizer, claimed.tokenizer),
        "vocab_size": (dataset.vocab_size, claimed.vocab_size),
        "eot_id": (dataset.eot_id, claimed.eot_id),
        f"sha256 of {TOKENIZER_FILE}": tuple(None if file is None else file.sha256 for file in files),
        "data.unit": (dataset.unit, claimed.unit),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"--test-data {dataset.folder}: {key} is {found}, the claim's data have {expected}; prepare your "
                "documents with the claim's settings of tokenizer and unit"
            )
    lengths = dataset.document_lengths("test")
    if not len(lengths) or lengths.min() < min_tokens:
        found = f"a document of {lengths.min()} tokens" if len(lengths) else "no documents"
        raise UserError(
            f"--test-data {dataset.folder}: {found} in its test split, expected documents of at least data.min_tokens "
            f"{min_tokens} of the claim; prepare them with that min_tokens"
        )
