"""losses.npz: the losses of a certificate, and which certificate they belong to. Does not import torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sublora.losses import TOP_K
from sublora.runs.message import Message, Sha256
from sublora.system.archives import read_npz
from sublora.system.errors import UserError, printable
from sublora.system.files import atomic_path, parse_json
from sublora.system.provenance import Amount, TrainingFacts
from sublora.system.validation import Strict, describe

PROVENANCE = "provenance"
ARRAYS = (
    "indices",
    "losses_bits",
    "log_p_nats",
    "target_counts",
    "topk_errors",
    "val_losses_bits",
    "val_losses_unquantized_bits",
    "test_losses_bits",
)
"""Arrays of every run."""
OF_SOURCES = ("source_documents", "source_losses_bits")
"""Arrays of a run with a bound over sources."""
OF_THE_ANCHOR = ("excess_bits", "base_log_p_nats", "test_excess_bits", "base_indices", "base_losses_bits")
"""Arrays of a run that is anchored on its base."""
OF_ANCHORED_SOURCES = ("source_excess_bits", "base_source_documents", "base_source_losses_bits")
WHOLE_NUMBERS = ("indices", "target_counts", "source_documents", "base_indices", "base_source_documents")


class ScoringSeconds(Strict):
    encode: Amount
    score: Amount


class LossesProvenance(Strict):
    """The certificate that the losses belong to, and the machines that trained and scored it."""

    certificate_sha256: Sha256
    seconds: ScoringSeconds
    peak_memory_mib: Amount
    gpu: str | None
    slurm_job_id: str | None
    train: TrainingFacts


def write_losses(path: Path, arrays: dict[str, np.ndarray], provenance: dict[str, Any]) -> None:
    """Write losses.npz; `provenance` has the keys of `LossesProvenance`."""
    contents = arrays | {PROVENANCE: np.array(json.dumps(LossesProvenance.model_validate(provenance).model_dump()))}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **contents)


def read_losses(path: Path) -> dict[str, Any]:
    """The arrays of losses.npz, float32 as float64, and its provenance; UserError for a missing or damaged file."""
    fix = f"score the run again (sublora score {path.parent})"
    missing = f"no such file; score the run first (sublora score {path.parent})"
    arrays = read_npz(path, missing=missing, fix=fix)
    try:
        if PROVENANCE not in arrays:
            raise ValueError(f"it lacks {PROVENANCE}")
        facts = parse_json(str(arrays.pop(PROVENANCE)).encode())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({printable(error, 100)}); {fix}") from None
    try:
        provenance = LossesProvenance.model_validate(facts).model_dump()
    except ValidationError as error:
        found = describe(error, LossesProvenance.model_json_schema())
        raise UserError(f"{path}: {PROVENANCE}: {found}; written by an older version? {fix}") from None
    return {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in arrays.items()} | {
        PROVENANCE: provenance
    }


def check_losses(losses: dict[str, Any], message: Message, path: Path) -> None:
    """UserError unless the arrays are those that scoring the certificate writes: names, types and shapes."""
    scoring, premises, anchoring = message.settings.scoring, message.loss.premises, message.loss.anchoring
    units = premises.m_units or premises.n_units
    by_source = scoring.sources is not None
    names = [*ARRAYS, *OF_SOURCES * by_source]
    if anchoring is not None:
        names += [*OF_THE_ANCHOR, *OF_ANCHORED_SOURCES * by_source]
    found = sorted(losses.keys() - {PROVENANCE})
    fix = f"score the run again (sublora score {path.parent})"
    if found != sorted(names):
        raise UserError(f"{path}: holds {', '.join(found)}; expected {', '.join(sorted(names))}; {fix}")
    documents = np.shape(losses["target_counts"])
    shapes: dict[str, tuple[int, ...]] = {
        "indices": (units,),
        "losses_bits": (units,),
        "topk_errors": (units, len(TOP_K)),
        "log_p_nats": documents,
        "val_losses_unquantized_bits": np.shape(losses["val_losses_bits"]),
    }
    if scoring.sources is not None:
        shapes |= dict.fromkeys((*OF_SOURCES, "source_excess_bits"), (scoring.sources,))
    if anchoring is not None:
        base_units = anchoring.base_documents or premises.n_units
        shapes |= {"excess_bits": (units,), "base_log_p_nats": documents}
        shapes |= {"test_excess_bits": np.shape(losses["test_losses_bits"])}
        shapes |= dict.fromkeys(("base_indices", "base_losses_bits"), (base_units,))
        if by_source:
            facts = message.header.sources
            shapes |= dict.fromkeys(OF_ANCHORED_SOURCES[1:], (anchoring.base_sources or (facts.n if facts else 0),))
    for name in names:
        values = losses[name]
        kind = "i" if name in WHOLE_NUMBERS else "f"
        # An array that is not in `shapes` may have any length.
        wanted = shapes.get(name, (values.size,))
        if values.dtype.kind != kind or values.shape != wanted:
            expected = f"{'whole numbers' if kind == 'i' else 'floats'} of shape {wanted}"
            raise UserError(f"{path}: {name} holds {values.dtype} of shape {values.shape}, expected {expected}; {fix}")
        if kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{path}: {name} holds values that are not finite; {fix}")
