"""Score the decoded message on documents that its own hash draws."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from sublora import config, random
from sublora.data.dataset import TokenDataset
from sublora.device import claim_device, gpu_name, peak_memory_mib
from sublora.files import atomic_path
from sublora.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.nn.language_model import LanguageModel
from sublora.nn.lora import Adapters
from sublora.stages.encode import decoded_adapters, encode, losses_on
from sublora.stages.message import read_message
from sublora.stages.run_directory import RunDirectory


def draw_documents(payload_bytes: bytes, data_hash: str, *, n: int, m: int) -> np.ndarray:
    """m indices below n, with replacement, from a generator seeded with the frozen payload and the data's hash.

    They cannot have been known while anything was chosen, so the bound owes no selection for them (DESIGN 3).
    """
    return random.generator("scored documents", payload_bytes, data_hash).integers(0, n, size=m)


def score_drawn(
    settings: config.Settings, dataset: TokenDataset, model: LanguageModel, adapters: Adapters, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """losses_bits (m x A) and topk_errors (m x K), float32, of drawn training documents; each is scored once."""
    distinct, position = np.unique(indices, return_inverse=True)
    documents = [dataset.document("train", i) for i in distinct]
    scored = losses_on(settings, dataset, model, adapters, documents)
    return {
        "losses_bits": scored.losses_DA[position].astype(np.float32),
        "topk_errors": scored.topk_errors_DK[position].astype(np.float32),
    }


def score_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`, decode the certificate again, score it, and write losses.npz; returns its path."""
    directory = RunDirectory.open(path, config_path, root)
    with claim_device(directory.settings.compute) as device:
        model = directory.build_model(device)
        encoded = encode(directory, model)
        started = time.monotonic()
        # What is scored is what a stranger decodes from the file, not what the encoder had in memory.
        _, contents, payload = read_message(path / CERTIFICATE_NAME)
        dataset, scoring = directory.dataset, directory.settings.scoring
        indices = draw_documents(payload.data, dataset.data_hash, n=dataset.n_documents, m=scoring.documents)
        adapters = decoded_adapters(model, contents.weights.values(), contents.gates)
        drawn = score_drawn(directory.settings, dataset, model, adapters, indices)
        reported = [dataset.document("test", i) for i in range(scoring.test_documents)]
        test = losses_on(directory.settings, dataset, model, adapters, reported)
        facts: dict[str, Any] = {
            "seconds": {"encode": encoded.seconds, "score": time.monotonic() - started},
            "peak_memory_mib": peak_memory_mib(device),
            "gpu": gpu_name(device),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "train": directory.checkpoint["provenance"],
        }
    with atomic_path(path / LOSSES_NAME) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(
            handle,
            indices=indices,
            smoothing=np.array(scoring.smoothing),
            **drawn,
            val_losses_bits=encoded.val_losses_DA.astype(np.float32),
            val_losses_unquantized_bits=encoded.val_losses_unquantized_DA.astype(np.float32),
            test_losses_bits=test.losses_DA.astype(np.float32),
            provenance=np.array(json.dumps(facts)),
        )
    return path / LOSSES_NAME
