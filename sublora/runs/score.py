"""Score the decoded message on documents that its own hash draws."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sublora.bounds.smoothing import Smoothing
from sublora.device import claim_device, gpu_name, peak_memory_mib
from sublora.files import atomic_path
from sublora.losses.documents import blocks_of_documents, score_documents
from sublora.models.protocol import LanguageModel
from sublora.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.runs.encode import encode
from sublora.runs.folder import RunFolder
from sublora.runs.message import Message, read_message
from sublora.streams import generator
from sublora.training.run import Run


def draw_documents(
    decoder_header: Mapping[str, Any], payload_bytes: bytes, data_hash: str, *, n: int, m: int
) -> np.ndarray:
    """m indices below n, with replacement, int64.

    The generator is seeded with the sha256 of the canonical decoder header, the frozen payload and the data's hash, so
    the draw cannot have been known while anything was chosen that reaches the predictor.
    """
    canonical = json.dumps(decoder_header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return generator("scored documents", canonical, payload_bytes, data_hash).integers(0, n, size=m)


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRecord:
    """What a model does on documents, one row per document. Shape legend: D documents, K values of top-k."""

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


def scored_documents(message: Message, data_hash: str) -> np.ndarray:
    """Indices of the training documents behind the bounds: all n in their order, or m drawn with replacement."""
    n, m = message.loss.premises.n_documents, message.loss.m_documents
    if m is None:
        return np.arange(n)
    return draw_documents(message.decoder_header, message.payload.data, data_hash, n=n, m=m)


def score_training_documents(run: Run, message: Message, indices_D: np.ndarray) -> DocumentRecord:
    """The decoded message on training documents, in the order given; each distinct one is scored once."""
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    distinct, position_D = np.unique(indices_D, return_inverse=True)
    return record_documents(run, model, message.smoothing, "train", distinct)[position_D]


def score_message(run: Run, message: Message) -> dict[str, np.ndarray]:
    """The arrays of losses.npz that follow from a decoded message."""
    indices_D = scored_documents(message, run.dataset.data_hash)
    train = score_training_documents(run, message, indices_D)
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    scoring = run.settings.scoring
    held_out = {
        split: record_documents(run, model, message.smoothing, split, np.arange(count))
        for split, count in (("val", scoring.val_documents), ("test", scoring.test_documents))
    }
    return {
        "indices": indices_D,
        "losses_bits": train.losses_D,
        "log_p_nats": train.log_p_D,
        "target_counts": train.targets_D,
        "topk_errors": train.topk_errors_DK,
        "val_losses_bits": held_out["val"].losses_D,
        "test_losses_bits": held_out["test"].losses_D,
    }


def score_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`, decode the certificate again, score it, and write losses.npz; returns its path."""
    folder = RunFolder.open(path, config_path, root)
    with claim_device(folder.settings.compute) as device:
        run = folder.load(device)
        encoded = encode(folder, run)
        started = time.monotonic()
        # What is scored is what a stranger decodes from the file, not what the encoder had in memory.
        message = read_message(path / CERTIFICATE_NAME)
        arrays = score_message(run, message)
        facts: dict[str, Any] = {
            "seconds": {"encode": encoded.seconds, "score": time.monotonic() - started},
            "peak_memory_mib": peak_memory_mib(device),
            "gpu": gpu_name(device),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "train": folder.checkpoint["provenance"],
        }
    arrays["val_losses_unquantized_bits"] = encoded.val_losses_unquantized_D
    arrays["provenance"] = np.array(json.dumps(facts))
    with atomic_path(path / LOSSES_NAME) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
    return path / LOSSES_NAME
