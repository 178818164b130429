"""The files of losses: losses.npz of a run, and results/base_losses.npz of the base. Does not import torch.

Shape legend: U units, D documents, M sources.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from sublora.losses import TOP_K
from sublora.runs.message import Message, Sha256
from sublora.system.archives import read_npz
from sublora.system.errors import UserError, printable
from sublora.system.files import atomic_path, parse_json
from sublora.system.provenance import Amount, TrainingFacts
from sublora.system.validation import Strict, describe

PROVENANCE = "provenance"
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


@dataclasses.dataclass(frozen=True, eq=False)
class RunLosses:
    """The arrays of losses.npz: what a message's predictor does on the documents that are scored.

    Losses, excesses and top-k errors are those of units, in bits per token. Shape legend: K values of top-k.
    """

    indices: NDArray[np.int64]
    """(U): the training units behind the bounds."""
    losses_bits: NDArray[np.float64]
    log_p_nats: NDArray[np.float64]
    """(D): ln P of the documents of all these units, without smoothing."""
    target_counts: NDArray[np.int64]
    """(D): tokens of these documents, the closing end-of-text of each included."""
    topk_errors: NDArray[np.floating]
    """(U, K): share of targets that are not among the k likeliest tokens."""
    val_losses_bits: NDArray[np.float64]
    test_losses_bits: NDArray[np.float64]
    source_documents: NDArray[np.int64] | None = None
    """(M): a document of each drawn source, with a bound over sources."""
    source_losses_bits: NDArray[np.float64] | None = None
    base_indices: NDArray[np.int64] | None = None
    """The training units behind the bound on the base's loss; like all that follow, with an anchor."""
    base_losses_bits: NDArray[np.float64] | None = None
    base_source_documents: NDArray[np.int64] | None = None
    base_source_losses_bits: NDArray[np.float64] | None = None
    excess_bits: NDArray[np.float64] | None = None
    """(U): the loss in excess of the anchor's."""
    base_log_p_nats: NDArray[np.float64] | None = None
    """(D): ln of the base's probability of the documents."""
    test_excess_bits: NDArray[np.float64] | None = None
    source_excess_bits: NDArray[np.float64] | None = None
    val_losses_unquantized_bits: NDArray[np.float64] | None = None
    """Losses of the network before quantization; None only while that has not been scored."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are there, by their names in the file."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: values for name, values in named.items() if values is not None}


OF_EVERY_RUN = (
    *(field.name for field in dataclasses.fields(RunLosses) if field.default is dataclasses.MISSING),
    "val_losses_unquantized_bits",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LossesFile:
    """losses.npz as it was read, compared with no certificate yet."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    """By name; float32 as float64."""
    provenance: LossesProvenance

    def of(self, message: Message) -> RunLosses:
        """Return the arrays as those of a certificate.

        UserError unless they are what scoring the certificate writes: names, types and shapes.
        """
        shapes = _expected_shapes(self.arrays, message)
        fix = f"score the run again (sublora score {self.path.parent})"
        found, names = sorted(self.arrays), sorted(shapes)
        if found != names:
            raise UserError(f"{self.path}: holds {', '.join(found)}; expected {', '.join(names)}; {fix}")
        for name, shape in shapes.items():
            values = self.arrays[name]
            kind = "i" if name in WHOLE_NUMBERS else "f"
            wanted = (values.size,) if shape is None else shape
            if values.dtype.kind != kind or values.shape != wanted:
                expected = f"{'whole numbers' if kind == 'i' else 'floats'} of shape {wanted}"
                raise UserError(
                    f"{self.path}: {name} holds {values.dtype} of shape {values.shape}, expected {expected}; {fix}"
                )
            if kind == "f" and not np.isfinite(values).all():
                raise UserError(f"{self.path}: {name} holds values that are not finite; {fix}")
        return RunLosses(**self.arrays)


def _expected_shapes(arrays: dict[str, NDArray[Any]], message: Message) -> dict[str, tuple[int, ...] | None]:
    """Return the arrays that scoring a certificate writes and their shapes, as far as it says; None for any length.

    Where one array must be as long as another, the length is that of the other one in `arrays`.
    """
    scoring, premises, anchoring = message.settings.scoring, message.loss.premises, message.loss.anchoring

    def like(name: str) -> tuple[int, ...]:
        return np.shape(arrays.get(name, ()))

    units = (premises.m_units or premises.n_units,)
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(OF_EVERY_RUN)
    shapes |= {"indices": units, "losses_bits": units, "topk_errors": (*units, len(TOP_K))}
    shapes |= {"log_p_nats": like("target_counts"), "val_losses_unquantized_bits": like("val_losses_bits")}
    if scoring.sources is not None:
        shapes |= {"source_documents": (scoring.sources,), "source_losses_bits": (scoring.sources,)}
    if anchoring is not None:
        base_units = (anchoring.base_documents or premises.n_units,)
        shapes |= {"excess_bits": units, "base_log_p_nats": like("target_counts")}
        shapes |= {"test_excess_bits": like("test_losses_bits")}
        shapes |= {"base_indices": base_units, "base_losses_bits": base_units}
        if scoring.sources is not None:
            facts = message.header.sources
            base_sources = (anchoring.base_sources or (facts.n if facts else 0),)
            shapes |= {"source_excess_bits": (scoring.sources,)}
            shapes |= {"base_source_documents": base_sources, "base_source_losses_bits": base_sources}
    return shapes


def write_losses(path: Path, losses: RunLosses, provenance: LossesProvenance) -> None:
    """Write losses.npz, which appears whole."""
    contents = losses.arrays() | {PROVENANCE: np.array(json.dumps(provenance.model_dump()))}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **contents)


def read_losses(path: Path) -> LossesFile:
    """Read losses.npz. UserError for a missing or damaged file."""
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
        provenance = LossesProvenance.model_validate(facts)
    except ValidationError as error:
        found = describe(error, LossesProvenance.model_json_schema())
        raise UserError(f"{path}: {PROVENANCE}: {found}; written by an older version? {fix}") from None
    doubled = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in arrays.items()}
    return LossesFile(path, doubled, provenance)


FIX = "compute them again (sublora yardsticks --config FILE)"


class BaseLossesFacts(Strict):
    """What the losses of a base depend on."""

    seen_base_sha256: Sha256
    """The base as far as the train documents see it."""
    data_hash: Sha256
    """Covers which document is from which source."""
    k0: Annotated[int, Field(ge=1, le=64)]
    documents: int | None
    """Units drawn; None: all n."""
    sources: int | None
    """Sources drawn; None: each once, or there is no bound over sources."""
    by_source: bool
    val_documents: int
    test_documents: int
    sliding_window: int
    numerics: int
    """Version of the numerics of scoring."""


@dataclasses.dataclass(frozen=True, eq=False)
class BaseLosses:
    """Losses of the anchor Q_b in bits per token, float64, and what the base alone says of all documents it scored."""

    indices_U: np.ndarray
    """int64: the training units behind the bound on the base's loss."""
    losses_U: np.ndarray
    train_documents_D: np.ndarray
    """int64, ascending: all training documents that were scored."""
    train_log_p_D: np.ndarray
    """float64, nats."""
    val_log_p_D: np.ndarray
    test_log_p_D: np.ndarray
    source_documents_M: np.ndarray | None = None
    """int64: a document of each drawn source; None without a bound over sources."""
    source_losses_M: np.ndarray | None = None

    def known_train_log_p(self, rows_D: np.ndarray) -> np.ndarray:
        """Return ln P_base of training documents, nats, float64 (D,); NaN where it has not been computed."""
        place_D = np.minimum(np.searchsorted(self.train_documents_D, rows_D), len(self.train_documents_D) - 1)
        return np.where(self.train_documents_D[place_D] == rows_D, self.train_log_p_D[place_D], np.nan)


IN_THE_FILE = {
    "base_indices": "indices_U",
    "base_losses_bits": "losses_U",
    "base_source_documents": "source_documents_M",
    "base_source_losses_bits": "source_losses_M",
    "train_documents": "train_documents_D",
    "train_log_p_nats": "train_log_p_D",
    "val_log_p_nats": "val_log_p_D",
    "test_log_p_nats": "test_log_p_D",
}
"""Names of the arrays of base_losses.npz, in their order, and the fields of `BaseLosses` that they are."""
FACTS = "facts"


def save_base_losses(path: Path, facts: BaseLossesFacts, losses: BaseLosses, seconds: float) -> None:
    """Write base_losses.npz, which appears whole; seconds: how long it took to compute them."""
    named = {name: getattr(losses, field) for name, field in IN_THE_FILE.items()}
    arrays = {name: values for name, values in named.items() if values is not None}
    text = json.dumps(facts.model_dump() | {"seconds": seconds})
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **{FACTS: np.array(text)}, **arrays)


def open_base_losses(path: Path) -> tuple[BaseLossesFacts, BaseLosses]:
    """Read base_losses.npz, whatever base it is of. UserError if it is missing or damaged."""
    missing = "no such file; the anchored bound needs the losses of the base: run `sublora yardsticks --config FILE`"
    arrays = read_npz(path, missing=missing, fix=FIX)
    try:
        record: dict[str, Any] = json.loads(str(arrays.pop(FACTS)))
        record.pop("seconds")
        facts = BaseLossesFacts.model_validate(record)
        losses = BaseLosses(**{field: arrays[name] for name, field in IN_THE_FILE.items() if name in arrays})
    except ValidationError as error:
        raise UserError(f"{path}: facts: {describe(error, BaseLossesFacts.model_json_schema())}; {FIX}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {FIX}") from None
    return facts, losses
