"""Write a trained run as a message. Everything is chosen here, with train and val only, and then frozen."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from sublora import config
from sublora.bounds.selection import choose_smoothing
from sublora.coding.certificate import write_certificate
from sublora.coding.payload import MessageContents, Payload, write_payload
from sublora.coding.quantizer import (
    PLAIN,
    EntropyWeights,
    PlainWeights,
    ideal_message_bits,
    quantize_plain,
    round_for_rate,
)
from sublora.losses.bounded import judged_losses_DA
from sublora.losses.documents import score_documents
from sublora.runs.build import RunFolder
from sublora.runs.message import Header, SourceFacts, charged_bits, payload_context
from sublora.runs.starts import announce, record_start
from sublora.subspace.hashes import SubspaceHashes
from sublora.system.device import claim_device
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import CERTIFICATE_NAME
from sublora.system.provenance import Provenance, torch_build
from sublora.system.versions import NUMERICS_VERSIONS
from sublora.training.run import Run

PRICES_PER_BIT = (0.0, 0.02, 0.05, 0.1)
"""Squared rounding error, in squared steps (halved), that saving a bit may cost; 0 rounds to the nearest."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A frozen message, and what quantization did to the val losses."""

    payload: Payload
    contents: MessageContents
    val_losses_unquantized_U: np.ndarray
    """Losses of w before it was quantized, under the message's smoothing."""
    seconds: float


def encode_run(path: Path, *, config_path: Path | None = None, root: Path | None = None) -> Path:
    """Encode the run in `path`; returns its certificate.bin."""
    folder = RunFolder.open(path, config_path, root)
    with sole_writer(path, Presence(path, "encoding")), claim_device(folder.settings.compute) as device:
        provenance = Provenance.of_this_process()
        announce(folder.settings, provenance, device)
        record_start(path, "encode", folder.settings, provenance)
        encode_trained(folder, folder.load(device), provenance)
    return path / CERTIFICATE_NAME


def encode_trained(folder: RunFolder, run: Run, provenance: Provenance) -> Encoded:
    """Quantize w, choose the smoothing on val documents, freeze the payload and write the certificate."""
    started = time.monotonic()
    settings, context = run.settings, payload_context(run.settings, run.spec, run.subspace.shape.budget)
    split = tuple(int(k) for k in run.subspace.hard_split())
    unquantized = val_losses(run, run.subspace.subspace_params.detach().cpu().numpy(), split)
    weights = quantize(run, split, folder.checkpoint.get("quantization_step"))
    quantized = val_losses(run, weights.values(), split)
    # The payload's length does not depend on which smoothing it names, so C is known before the choice.
    draft = write_payload(MessageContents(weights, split, 0), context)
    code_bits, _ = charged_bits(draft.items, settings)
    contents = MessageContents(weights, split, choose_smoothing(quantized, run.loss, code_bits=code_bits))
    payload = write_payload(contents, context)
    header = certificate_header(run, provenance).model_dump(mode="json", exclude_unset=True)
    write_certificate(folder.path / CERTIFICATE_NAME, header, payload)
    chosen = contents.smoothing_index
    before = val_losses_of(run, unquantized, chosen)
    return Encoded(payload, contents, before, time.monotonic() - started)


def quantize(run: Run, split: tuple[int, ...], step: float | None) -> PlainWeights | EntropyWeights:
    """Return the symbols of the trained w: by the plain scheme, or for the entropy code by the bound estimated on val.

    The entropy code's candidates round to the nearest or, in favour of cheaper symbols, by rate; `step` is the one w
    was trained for.
    """
    w = run.subspace.subspace_params.detach().cpu().double().numpy()
    if run.settings.message.quantizer == PLAIN:
        return quantize_plain(w, run.settings.message.levels)
    if step is None:
        raise ValueError("a training for the entropy code must leave a quantization step")
    candidates = [round_for_rate(w, step, price * step**2) for price in PRICES_PER_BIT]
    estimator = run.estimator()
    estimates = []
    for weights in candidates:
        losses = estimator.losses(run.decoded(weights.values(), split))
        estimates.append(estimator.estimate(losses, ideal_message_bits(weights)).bound_bits)
    return candidates[int(np.argmin(estimates))]


def val_losses(run: Run, w: np.ndarray, split: tuple[int, ...]) -> np.ndarray:
    """Return losses of the val units under every smoothing for given w and gates, float64 (units x candidates).

    With an anchor, of their excess over the base; bits per token.
    """
    val = run.val_units
    scores = score_documents(run.decoded(w, split), val.documents, run.scoring_rule, run.device)
    return val.units.means(judged_losses_DA(run.loss, scores, val.base_log_p_D))


def val_losses_of(run: Run, judged_UA: np.ndarray, chosen: int) -> np.ndarray:
    """Return the losses of the val units under the chosen smoothing, bits per token, from what choices go by."""
    judged_U: np.ndarray = judged_UA[:, chosen]
    val, loss = run.val_units, run.loss
    if not loss.mixtures:
        return judged_U
    mixture, base_log_p_D = loss.mixtures[chosen], val.base_log_p_D
    assert base_log_p_D is not None
    counts_D = np.array([len(document) + 1 for document in val.documents])
    return judged_U + val.units.means(mixture.base_losses_bits(base_log_p_D, counts_D, loss.vocab_size))


def certificate_header(run: Run, provenance: Provenance) -> Header:
    """Return what a decoder needs beside the payload: facts fixed before the data, and the name of the arm."""
    dataset, hashes = run.dataset, SubspaceHashes.of(run.network.space, run.subspace)
    optional: dict[str, Any] = {"parameters": run.subspace.shape.space.size} if run.spec.budget == config.ALL else {}
    if run.scale_points is not None:
        optional["scale_points"] = {name: list(values) for name, values in run.scale_points.items()}
    return Header(
        run=config.RunSpec(**run.spec.model_dump(mode="json", exclude_none=True)),
        settings=run.settings.model_dump(mode="json"),
        vocab_size=dataset.vocab_size,
        n_units=dataset.n_units,
        n_documents=dataset.n_documents,
        data_hash=dataset.data_hash,
        sources=None if run.settings.scoring.sources is None else SourceFacts(**dataset.source_facts()),
        longest_targets=dataset.longest_targets,
        base_sha256=run.network.base_sha256,
        seen_base_sha256=run.seen_base_sha256,
        space_sha256=hashes.space_sha256,
        lora_init_sha256=hashes.lora_init_sha256,
        projection_sha256=hashes.projection_sha256,
        numerics_versions=NUMERICS_VERSIONS,
        environment={**provenance.versions_of("sublora"), "torch": torch_build(), **provenance.versions_of("numpy")},
        **optional,
    )
