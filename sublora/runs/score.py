"""Score the decoded message on documents that its own hash draws."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from sublora.device import claim_device, gpu_name, peak_memory_mib
from sublora.files import atomic_path
from sublora.losses.documents import score_documents
from sublora.models.protocol import LanguageModel
from sublora.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.runs.encode import encode
from sublora.runs.folder import RunFolder
from sublora.runs.message import read_message
from sublora.streams import generator
from sublora.training.run import Run


def draw_documents(payload_bytes: bytes, data_hash: str, *, n: int, m: int) -> np.ndarray:
    """m indices below n, with replacement, from a generator seeded with the frozen payload and the data's hash.

    They cannot have been known while anything was chosen, so the bound owes no selection for them (DESIGN 3).
    """
    return generator("scored documents", payload_bytes, data_hash).integers(0, n, size=m)


def score_drawn(run: Run, model: LanguageModel, indices: np.ndarray) -> dict[str, np.ndarray]:
    """losses_bits (m x A) and topk_errors (m x K), float32, of drawn training documents; each is scored once."""
    distinct, position = np.unique(indices, return_inverse=True)
    documents = [run.dataset.document("train", i) for i in distinct]
    scores = score_documents(model, documents, run.scoring_rule, run.device)
    losses_DA = scores.losses_DA(run.settings.scoring.smoothing, run.dataset.vocab_size)
    return {
        "losses_bits": losses_DA[position].astype(np.float32),
        "topk_errors": scores.topk_errors_DK()[position].astype(np.float32),
    }


def score_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`, decode the certificate again, score it, and write losses.npz; returns its path."""
    folder = RunFolder.open(path, config_path, root)
    dataset, scoring = folder.dataset, folder.settings.scoring
    with claim_device(folder.settings.compute) as device:
        run = folder.load(device)
        encoded = encode(folder, run)
        started = time.monotonic()
        # What is scored is what a stranger decodes from the file, not what the encoder had in memory.
        message = read_message(path / CERTIFICATE_NAME)
        indices = draw_documents(message.payload.data, dataset.data_hash, n=dataset.n_documents, m=scoring.documents)
        model = run.decoded(message.contents.weights.values(), message.contents.gates)
        drawn = score_drawn(run, model, indices)
        reported = [dataset.document("test", i) for i in range(scoring.test_documents)]
        test = score_documents(model, reported, run.scoring_rule, device)
        facts: dict[str, Any] = {
            "seconds": {"encode": encoded.seconds, "score": time.monotonic() - started},
            "peak_memory_mib": peak_memory_mib(device),
            "gpu": gpu_name(device),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "train": folder.checkpoint["provenance"],
        }
    with atomic_path(path / LOSSES_NAME) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(
            handle,
            indices=indices,
            smoothing=np.array(scoring.smoothing),
            **drawn,
            val_losses_bits=encoded.val_losses_DA.astype(np.float32),
            val_losses_unquantized_bits=encoded.val_losses_unquantized_DA.astype(np.float32),
            test_losses_bits=test.losses_DA(scoring.smoothing, dataset.vocab_size).astype(np.float32),
            provenance=np.array(json.dumps(facts)),
        )
    return path / LOSSES_NAME
