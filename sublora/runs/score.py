"""Score the decoded message on units, documents or groups of them, that its own hash draws.

Shape legend: U units, D documents, K values of top-k.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sublora.bounds.anchor import AnchoredMixture
from sublora.bounds.smoothing import Smoothing
from sublora.data.dataset import TokenDataset
from sublora.losses.causality import CausalityTest
from sublora.losses.documents import TargetScores, blocks_of_documents, score_documents
from sublora.models.protocol import LanguageModel
from sublora.runs.base_losses import read_base_losses
from sublora.runs.build import RunFolder
from sublora.runs.encode import encode_trained
from sublora.runs.losses_file import BaseLosses, LossesProvenance, RunLosses, ScoringSeconds, write_losses
from sublora.runs.message import Message, decoder_header, read_message
from sublora.runs.starts import announce, record_start
from sublora.system.device import claim_device, gpu_name, peak_memory_mib
from sublora.system.digests import canonical_json
from sublora.system.errors import UserError
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import BASE_LOSSES_PATH, CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance, TrainingFacts
from sublora.system.streams import generator
from sublora.training.run import Run


def draw_units(header: Mapping[str, Any], data_hash: str, *, n: int, m: int) -> np.ndarray:
    """Draw m indices below n, with replacement, int64.

    The generator is seeded with the data's hash and the canonical decoder header (`decoder_header`), which holds what
    the message decodes to, so the draw cannot have been known while anything was chosen that reaches the predictor. A
    smaller m draws the first of the same indices: choosing m is not choosing among independent draws.
    """
    return generator("scored documents", canonical_json(header), data_hash).integers(0, n, size=m)


def draw_of_sources(message: Message, dataset: TokenDataset, *, m: int) -> np.ndarray:
    """Draw m training documents, int64 (m,): a source is drawn with replacement, then one of its documents.

    Seeded as `draw_units` is, under other names; the data's hash covers which document is from which source.
    """
    order_D, sources = dataset.sources()
    seed = canonical_json(decoder_header(message)), dataset.data_hash
    drawn_M = generator("scored sources", *seed).integers(0, len(sources), size=m)
    documents: np.ndarray = order_D[sources.documents_of(drawn_M, generator("documents of scored sources", *seed))]
    return documents


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A network that is scored, and how its losses are smoothed."""

    model: LanguageModel
    smoothing: Smoothing | AnchoredMixture
    base: LanguageModel | None = None
    """The anchor's network; given if and only if the smoothing is anchored."""
    causality: CausalityTest | None = None
    """Tests both networks wherever they are scored."""


KnownLogP = Callable[[np.ndarray], np.ndarray]
"""Returns ln P_base of documents of a split, nats, by their indices; NaN where it is not known."""


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRecord:
    """What a predictor does on documents, one row per document."""

    losses_D: np.ndarray
    """float64, bits per token, under the message's smoothing."""
    log_p_D: np.ndarray
    """float64, nats: ln P of the whole document, without smoothing."""
    targets_D: np.ndarray
    """int64: its tokens and the closing end-of-text."""
    topk_errors_DK: np.ndarray
    """float32: share of targets that are not among the k likeliest tokens; of the network alone."""
    base_log_p_D: np.ndarray
    """float64, nats: ln of the base's probability of the whole document; without an anchor ln 1, used nowhere."""
    excess_D: np.ndarray
    """float64, bits per token: the loss in excess of the anchor's; without an anchor the loss."""

    def __getitem__(self, rows_D: np.ndarray) -> "DocumentRecord":
        return DocumentRecord(*(getattr(self, field.name)[rows_D] for field in dataclasses.fields(self)))


def record_documents(
    run: Run, predictor: Predictor, split: str, rows_D: np.ndarray, base_log_p_D: np.ndarray | None = None
) -> DocumentRecord:
    """Score documents of a split, in the order given, in bounded memory.

    base_log_p_D: what the base says of these documents where that is known already, NaN elsewhere; None: of none.
    """
    parts, vocab_size = [], run.dataset.vocab_size

    def score(model: LanguageModel, documents: Sequence[np.ndarray]) -> TargetScores:
        return score_documents(model, documents, run.scoring_rule, run.device, predictor.causality)

    for block in blocks_of_documents(run.dataset.document_lengths(split)[rows_D]):
        documents = [run.dataset.document(split, int(i)) for i in rows_D[block]]
        scores = score(predictor.model, documents)
        log_p_D, counts_D = scores.document_log_p_D(), scores.counts_D
        if isinstance(predictor.smoothing, AnchoredMixture):
            base_D = np.full(len(documents), np.nan) if base_log_p_D is None else base_log_p_D[block].copy()
            if len(unknown := np.flatnonzero(np.isnan(base_D))):
                assert predictor.base is not None
                base_D[unknown] = score(predictor.base, [documents[i] for i in unknown]).document_log_p_D()
            losses_D = predictor.smoothing.losses_bits(log_p_D, base_D, counts_D, vocab_size)
            excess_D = predictor.smoothing.excess_bits(log_p_D, base_D, counts_D, vocab_size)
        else:
            base_D = np.zeros(len(documents))
            losses_D = excess_D = scores.losses_DA([predictor.smoothing], vocab_size)[:, 0]
        topk_errors_DK = scores.topk_errors_DK().astype(np.float32)
        parts.append((losses_D, log_p_D, counts_D, topk_errors_DK, base_D, excess_D))
    return DocumentRecord(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class UnitRecord:
    """What a predictor does on units, one row per unit."""

    losses_U: np.ndarray
    """float64, bits per token: mean over the unit's documents."""
    excess_U: np.ndarray
    """float64, bits per token: mean over the unit's documents; without an anchor the loss."""
    topk_errors_UK: np.ndarray
    """float32: mean over the unit's documents."""
    documents: DocumentRecord
    """Record of the documents of all units, one unit after the other."""


def record_units(
    run: Run, predictor: Predictor, split: str, indices_U: np.ndarray, known: KnownLogP | None = None
) -> UnitRecord:
    """Score all documents of some units of a split, in the order given; each distinct unit is scored once.

    known: what the base says of documents of the split, as far as that is known already.
    """
    distinct, position_U = np.unique(indices_U, return_inverse=True)
    documents_D, units = run.dataset.units(split).take(distinct)
    rows_D, drawn = units.take(position_U)
    base_log_p_D = None if known is None else known(documents_D)
    documents = record_documents(run, predictor, split, documents_D, base_log_p_D)[rows_D]
    topk_errors_UK = drawn.means(documents.topk_errors_DK).astype(np.float32)
    return UnitRecord(drawn.means(documents.losses_D), drawn.means(documents.excess_D), topk_errors_UK, documents)


def held_out_units(
    run: Run, predictor: Predictor, split: str, documents: int, base_log_p_D: np.ndarray | None = None
) -> UnitRecord:
    """Score the first units of val or test that hold at least that many documents.

    base_log_p_D: what the base says of their documents, if it was scored already.
    """
    count = run.dataset.units(split).leading(documents)
    known = None if base_log_p_D is None else lambda _: base_log_p_D
    return record_units(run, predictor, split, np.arange(count), known)


def scored_units(message: Message, data_hash: str) -> np.ndarray:
    """Indices of the training units behind the bounds: all n in their order, or m drawn with replacement."""
    n, m = message.loss.premises.n_units, message.loss.premises.m_units
    if m is None:
        return np.arange(n)
    return draw_units(decoder_header(message), data_hash, n=n, m=m)


def decoded_predictor(run: Run, message: Message, causality: CausalityTest | None = None) -> Predictor:
    """Return the predictor that a message stands for: its network, its smoothing and, with an anchor, the base."""
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    if message.mixture is None:
        return Predictor(model, message.smoothing, causality=causality)
    return Predictor(model, message.mixture, run.base(), causality)


def score_message(run: Run, message: Message, predictor: Predictor, base: BaseLosses | None) -> RunLosses:
    """Return the losses that follow from a decoded message.

    base: with an anchor, the losses of the base, which all runs share.
    """
    indices_U = scored_units(message, run.dataset.data_hash)
    known = None if base is None else base.known_train_log_p
    train = record_units(run, predictor, "train", indices_U, known)
    scoring = run.settings.scoring
    val = held_out_units(run, predictor, "val", scoring.val_documents, None if base is None else base.val_log_p_D)
    test = held_out_units(run, predictor, "test", scoring.test_documents, None if base is None else base.test_log_p_D)
    sources, documents_M = None, None
    if scoring.sources is not None:
        documents_M = draw_of_sources(message, run.dataset, m=scoring.sources)
        sources = record_documents(run, predictor, "train", documents_M, None if known is None else known(documents_M))
    losses = RunLosses(
        indices=indices_U,
        losses_bits=train.losses_U,
        log_p_nats=train.documents.log_p_D,
        target_counts=train.documents.targets_D,
        topk_errors=train.topk_errors_UK,
        val_losses_bits=val.losses_U,
        test_losses_bits=test.losses_U,
        source_documents=documents_M,
        source_losses_bits=None if sources is None else sources.losses_D,
    )
    if base is None:
        return losses
    return dataclasses.replace(
        losses,
        base_indices=base.indices_U,
        base_losses_bits=base.losses_U,
        base_source_documents=base.source_documents_M,
        base_source_losses_bits=base.source_losses_M,
        excess_bits=train.excess_U,
        base_log_p_nats=train.documents.base_log_p_D,
        test_excess_bits=test.excess_U,
        source_excess_bits=None if sources is None else sources.excess_D,
    )


def score_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`, decode the certificate again, score it, and write losses.npz; returns its path.

    UserError if a prediction depends on later tokens (`CausalityTest`).
    """
    folder = RunFolder.open(path, config_path, root)
    with sole_writer(path, Presence(path, "scoring")), claim_device(folder.settings.compute) as device:
        provenance = Provenance.of_this_process()
        announce(folder.settings, provenance, device)
        record_start(path, "score", folder.settings, provenance)
        run = folder.load(device)
        base = None
        if run.loss.anchoring is not None:
            base = read_base_losses(folder.root / BASE_LOSSES_PATH, run)
            run = dataclasses.replace(run, val_base_log_p_D=base.val_log_p_D)
        encoded = encode_trained(folder, run, provenance)
        started = time.monotonic()
        # What is scored is what a stranger decodes from the file, not what the encoder had in memory.
        message = read_message(path / CERTIFICATE_NAME)
        seed = canonical_json(decoder_header(message)), run.dataset.data_hash
        causality = CausalityTest(generator("causality of a run", *seed))
        losses = score_message(run, message, decoded_predictor(run, message, causality), base)
        if causality.refusal is not None:
            raise UserError(f"{path}: {causality.refusal}")
        facts = LossesProvenance(
            certificate_sha256=message.certificate_sha256,
            seconds=ScoringSeconds(encode=encoded.seconds, score=time.monotonic() - started),
            peak_memory_mib=peak_memory_mib(device),
            gpu=gpu_name(device),
            slurm_job_id=provenance.slurm_job_id,
            train=TrainingFacts.model_validate(folder.checkpoint["provenance"]),
        )
        losses = dataclasses.replace(losses, val_losses_unquantized_bits=encoded.val_losses_unquantized_U)
        write_losses(path / LOSSES_NAME, losses, facts)
    return path / LOSSES_NAME
