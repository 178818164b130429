"""Score the decoded message on units, documents or groups of them, that its own hash draws.

Shape legend: U units, D documents, K values of top-k.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sublora.bounds.smoothing import Smoothing
from sublora.data.dataset import TokenDataset
from sublora.losses.documents import blocks_of_documents, score_documents
from sublora.models.protocol import LanguageModel
from sublora.runs.announce import announce
from sublora.runs.encode import encode
from sublora.runs.folder import RunFolder
from sublora.runs.losses_file import write_losses
from sublora.runs.message import Message, read_message
from sublora.runs.starts import record_start
from sublora.system.device import claim_device, gpu_name, peak_memory_mib
from sublora.system.files import sha256_of_file
from sublora.system.locks import sole_writer
from sublora.system.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.presence import Presence
from sublora.system.streams import generator
from sublora.training.run import Run


def draw_units(
    decoder_header: Mapping[str, Any], payload_bytes: bytes, data_hash: str, *, n: int, m: int
) -> np.ndarray:
    """m indices below n, with replacement, int64.

    The generator is seeded with the sha256 of the canonical decoder header, the frozen payload and the data's hash, so
    the draw cannot have been known while anything was chosen that reaches the predictor.
    """
    return generator("scored documents", _canonical(decoder_header), payload_bytes, data_hash).integers(0, n, size=m)


def draw_of_sources(message: Message, dataset: TokenDataset, *, m: int) -> np.ndarray:
    """m training documents, int64 (m,): a source is drawn with replacement, then one of its documents.

    Seeded as `draw_units` is, under another name and with the hash of the sources.
    """
    facts, (order_D, sources) = dataset.source_facts(), dataset.sources()
    canonical, payload = _canonical(message.decoder_header), message.payload.data
    rng = generator("scored sources", canonical, payload, dataset.data_hash, facts["sha256"])
    documents: np.ndarray = order_D[sources.documents_of(rng.integers(0, len(sources), size=m), rng)]
    return documents


def _canonical(decoder_header: Mapping[str, Any]) -> str:
    return json.dumps(decoder_header, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRecord:
    """What a model does on documents, one row per document."""

    losses_D: np.ndarray
    """float64, bits per token, under the message's smoothing."""
    log_p_D: np.ndarray
    """float64, nats: ln P of the whole document, without smoothing."""
    targets_D: np.ndarray
    """int64: its tokens and the closing end-of-text."""
    topk_errors_DK: np.ndarray
    """float32: share of targets that are not among the k likeliest tokens."""

    def __getitem__(self, rows_D: np.ndarray) -> "DocumentRecord":
        return DocumentRecord(*(getattr(self, field.name)[rows_D] for field in dataclasses.fields(self)))


def record_documents(
    run: Run, model: LanguageModel, smoothing: Smoothing, split: str, rows_D: np.ndarray
) -> DocumentRecord:
    """Score documents of a split, in the order given, in bounded memory."""
    parts = []
    for block in blocks_of_documents(run.dataset.document_lengths(split)[rows_D]):
        documents = [run.dataset.document(split, int(i)) for i in rows_D[block]]
        scores = score_documents(model, documents, run.scoring_rule, run.device)
        parts.append(
            (
                scores.losses_DA([smoothing], run.dataset.vocab_size)[:, 0],
                scores.document_log_p_D(),
                scores.counts_D,
                scores.topk_errors_DK().astype(np.float32),
            )
        )
    return DocumentRecord(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class UnitRecord:
    """What a model does on units, one row per unit."""

    losses_U: np.ndarray
    """float64, bits per token: mean over the unit's documents."""
    topk_errors_UK: np.ndarray
    """float32: mean over the unit's documents."""
    documents: DocumentRecord
    """Of the documents of all units, one unit after the other."""


def record_units(run: Run, model: LanguageModel, smoothing: Smoothing, split: str, indices_U: np.ndarray) -> UnitRecord:
    """Score all documents of some units of a split, in the order given; each distinct unit is scored once."""
    distinct, position_U = np.unique(indices_U, return_inverse=True)
    documents_D, units = run.dataset.units(split).take(distinct)
    rows_D, drawn = units.take(position_U)
    documents = record_documents(run, model, smoothing, split, documents_D)[rows_D]
    topk_errors_UK = drawn.means(documents.topk_errors_DK).astype(np.float32)
    return UnitRecord(drawn.means(documents.losses_D), topk_errors_UK, documents)


def held_out_losses(run: Run, model: LanguageModel, smoothing: Smoothing, split: str, documents: int) -> np.ndarray:
    """Losses of the first units of val or test that hold at least so many documents, bits per token, float64 (U)."""
    count = run.dataset.units(split).leading(documents)
    return record_units(run, model, smoothing, split, np.arange(count)).losses_U


def scored_units(message: Message, data_hash: str) -> np.ndarray:
    """Indices of the training units behind the bounds: all n in their order, or m drawn with replacement."""
    n, m = message.loss.premises.n_units, message.loss.premises.m_units
    if m is None:
        return np.arange(n)
    return draw_units(message.decoder_header, message.payload.data, data_hash, n=n, m=m)


def score_training_units(run: Run, message: Message, indices_U: np.ndarray) -> UnitRecord:
    """The decoded message on training units, in the order given."""
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    return record_units(run, model, message.smoothing, "train", indices_U)


def score_message(run: Run, message: Message) -> dict[str, np.ndarray]:
    """The arrays of losses.npz that follow from a decoded message.

    Losses and top-k errors are those of units, in the order of `indices`; `log_p_nats` and `target_counts` are those of
    the units' documents. With a bound over sources, `source_documents` are the documents of its draw.
    """
    indices_U = scored_units(message, run.dataset.data_hash)
    train = score_training_units(run, message, indices_U)
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    scoring = run.settings.scoring
    held_out = {
        split: held_out_losses(run, model, message.smoothing, split, count)
        for split, count in (("val", scoring.val_documents), ("test", scoring.test_documents))
    }
    by_source = {}
    if scoring.sources is not None:
        documents_D = draw_of_sources(message, run.dataset, m=scoring.sources)
        scored = record_units(run, model, message.smoothing, "train", documents_D)
        by_source = {"source_documents": documents_D, "source_losses_bits": scored.losses_U}
    return by_source | {
        "indices": indices_U,
        "losses_bits": train.losses_U,
        "log_p_nats": train.documents.log_p_D,
        "target_counts": train.documents.targets_D,
        "topk_errors": train.topk_errors_UK,
        "val_losses_bits": held_out["val"],
        "test_losses_bits": held_out["test"],
    }


def score_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`, decode the certificate again, score it, and write losses.npz; returns its path."""
    folder = RunFolder.open(path, config_path, root)
    with sole_writer(path, Presence(path, "scoring")), claim_device(folder.settings.compute) as device:
        announce(folder.settings, device)
        record_start(path, "score", folder.settings)
        run = folder.load(device)
        encoded = encode(folder, run)
        started = time.monotonic()
        # What is scored is what a stranger decodes from the file, not what the encoder had in memory.
        message = read_message(path / CERTIFICATE_NAME)
        arrays = score_message(run, message)
        facts: dict[str, Any] = {
            "certificate_sha256": sha256_of_file(path / CERTIFICATE_NAME),
            "seconds": {"encode": encoded.seconds, "score": time.monotonic() - started},
            "peak_memory_mib": peak_memory_mib(device),
            "gpu": gpu_name(device),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "train": folder.checkpoint["provenance"],
        }
        arrays["val_losses_unquantized_bits"] = encoded.val_losses_unquantized_U
        write_losses(path / LOSSES_NAME, arrays, facts)
    return path / LOSSES_NAME
