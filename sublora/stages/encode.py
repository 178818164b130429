"""Write a trained run as a message. Everything is chosen here, with train and val only, and then frozen."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sublora import __version__, config
from sublora.bounds.selection import Sampling, choose_smoothing
from sublora.coding import plain
from sublora.coding.certificate import write_certificate
from sublora.coding.entropy import EntropyWeights, ideal_message_bits
from sublora.coding.payload import MessageContents, Payload, write_payload
from sublora.coding.plain import PlainWeights, quantize_plain
from sublora.coding.rounding import round_for_rate
from sublora.data.dataset import TokenDataset
from sublora.device import claim_device
from sublora.names import CERTIFICATE_NAME
from sublora.nn.language_model import LanguageModel
from sublora.nn.lora import Adapters
from sublora.scoring.documents import DocumentLosses, score_documents
from sublora.stages.message import charged_bits, payload_context
from sublora.stages.run_directory import RunDirectory
from sublora.training.bound_estimate import BoundEstimator
from sublora.versions import NUMERICS_VERSIONS

PRICES_PER_BIT = (0.0, 0.02, 0.05, 0.1)
"""Squared rounding error, in squared steps (halved), that saving a bit may cost; 0 rounds to the nearest."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A frozen message, and the val losses it was chosen by."""

    payload: Payload
    contents: MessageContents
    val_losses_DA: np.ndarray
    val_losses_unquantized_DA: np.ndarray
    seconds: float


def encode_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`; returns its certificate.bin."""
    directory = RunDirectory.open(path, config_path, root)
    with claim_device(directory.settings.compute) as device:
        encode(directory, directory.build_model(device))
    return path / CERTIFICATE_NAME


def encode(directory: RunDirectory, model: LanguageModel) -> Encoded:
    """Quantize w, choose the smoothing on val documents, freeze the payload and write the certificate."""
    started = time.monotonic()
    settings, context = directory.settings, payload_context(directory.settings, directory.run)
    gates = tuple(int(k) for k in model.subspace.hard_split())
    unquantized = val_losses(directory, model, model.subspace.subspace_params.detach().cpu().numpy(), gates)
    weights = quantize(directory, model, gates)
    quantized = val_losses(directory, model, weights.values(), gates)
    # The payload's length does not depend on which smoothing it names, so C is known before the choice.
    draft = write_payload(MessageContents(weights, gates, 0), context)
    code_bits, _ = charged_bits(draft.items, settings)
    chosen = choose_smoothing(
        quantized,
        settings.scoring.smoothing,
        vocab_size=directory.dataset.vocab_size,
        code_bits=code_bits,
        sampling=Sampling.of(settings, directory.dataset.n_documents),
    )
    contents = MessageContents(weights, gates, chosen)
    payload = write_payload(contents, context)
    write_certificate(directory.path / CERTIFICATE_NAME, certificate_header(directory, model), payload)
    return Encoded(payload, contents, quantized, unquantized, time.monotonic() - started)


def quantize(directory: RunDirectory, model: LanguageModel, gates: tuple[int, ...]) -> PlainWeights | EntropyWeights:
    """The symbols of the trained w: by the plain scheme, or for the entropy code by the bound estimated on val.

    The entropy code's candidates round to the nearest or, in favour of cheaper symbols, by rate; the step is the one
    w was trained for.
    """
    w = model.subspace.subspace_params.detach().cpu().double().numpy()
    if directory.settings.message.quantizer == plain.NAME:
        return quantize_plain(w, directory.settings.message.levels)
    step = directory.checkpoint["quantization_step"]
    candidates = [round_for_rate(w, step, price * step**2) for price in PRICES_PER_BIT]
    estimator = BoundEstimator(directory.settings, directory.dataset, model.subspace.subspace_params.device)
    estimates = []
    for weights in candidates:
        losses = estimator.losses(model.base, decoded_adapters(model, weights.values(), gates))
        estimates.append(estimator.estimate(losses, ideal_message_bits(weights)).bound_bits)
    return candidates[int(np.argmin(estimates))]


def val_losses(directory: RunDirectory, model: LanguageModel, w: np.ndarray, gates: tuple[int, ...]) -> np.ndarray:
    """Losses of the val documents at every smoothing value, float64 (documents x values), for given w and gates."""
    documents = [directory.dataset.document("val", i) for i in range(directory.settings.scoring.val_documents)]
    adapters = decoded_adapters(model, w, gates)
    return losses_on(directory.settings, directory.dataset, model, adapters, documents).losses_DA


def losses_on(
    settings: config.Settings,
    dataset: TokenDataset,
    model: LanguageModel,
    adapters: Adapters,
    documents: list[np.ndarray],
) -> DocumentLosses:
    """`score_documents` as the settings say."""
    return score_documents(
        model.base,
        adapters,
        documents,
        eot_id=dataset.eot_id,
        stride=settings.scoring.sliding_window,
        smoothing=settings.scoring.smoothing,
        batch_tokens=settings.compute.scoring_batch_tokens,
    )


@torch.no_grad()
def decoded_adapters(model: LanguageModel, w: np.ndarray, gates: tuple[int, ...]) -> Adapters:
    """The adapters of a decoded message; needs nothing of the checkpoint but what its seeds rebuild."""
    subspace = model.subspace
    subspace.subspace_params.copy_(torch.from_numpy(np.ascontiguousarray(w, dtype=np.float32)))
    split = torch.tensor(gates, device=subspace.subspace_params.device)
    return model.adapters(subspace(split_G=split))


def certificate_header(directory: RunDirectory, model: LanguageModel) -> dict[str, Any]:
    """What a decoder needs beside the payload, all of it fixed before the data or naming the arm."""
    settings, dataset = directory.settings, directory.dataset
    return {
        "run": directory.run.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "settings_digest": config.digest(settings.model_dump(mode="json")),
        "vocab_size": dataset.vocab_size,
        "n_documents": dataset.n_documents,
        "data_hash": dataset.data_hash,
        "base_sha256": model.base_sha256,
        "numerics_versions": NUMERICS_VERSIONS,
        "environment": {"sublora": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
