"""bounds.json: everything that is reported of a run's bounds, as one typed record whose keys are listed here alone.

Losses and bounds are in bits per token, message lengths in bits. The order of the fields is that of the file.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainValidator,
    ValidationError,
    model_validator,
)

from sublora.bounds.checks import LN2
from sublora.system.errors import UserError, printable
from sublora.system.files import read_json

RECORD_FORMAT: Literal[3] = 3

TOLERANCE_BITS = 1e-6
"""How far C may lie from the sum of its items, which are added in floating point."""


def _finite(value: object) -> int | float:
    """The number as it is: a whole number stays one, so that a record that was read is written with the same bytes."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise ValueError("expected a finite number")
    return value if isinstance(value, int) else float(value)


Number = Annotated[int | float, PlainValidator(_finite)]
"""A finite number, whole or not."""


class Facts(BaseModel):
    """Base of the record's parts: values immutable, types not coerced, further keys ignored."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True)


class RunFacts(Facts):
    """Which run of the grid the record is of."""

    name: str
    budget: int
    """d, the length of w."""
    allocation: str
    mode: str
    ratio: Number | None
    """The share of B; None where the allocation has no fixed one."""
    seed: int
    trained: str | None = None
    """What is trained; only where the grid compares it."""
    size: str | None = None
    """The network; only where the grid compares networks."""
    model_parameters: int | None = None
    """Weights of the network, without adapters; only with `size`."""


class RunBounds(Facts):
    """Everything that follows from a run's message, its losses and the premises."""

    format: Literal[3] = RECORD_FORMAT
    run: RunFacts
    bound_value: Number
    """The headline, fixed beforehand: `bound_direct`, with an anchor the sum of the bounds on base and excess."""
    bound_inequality: str
    bound_hoeffding: Number
    """The bound of the paper."""
    bound_all_runs: Number
    """The headline bound for whoever names the best of all runs by it."""
    bound_strict: Number | None
    """The headline bound for whoever does not believe that the settings were fixed beforehand, but named population and
    base."""
    settings_bits: Number | None
    settings_reference: str | None
    """The reference configuration by which the settings are named, and the bits it takes."""
    bound_strict_absent: str | None
    """Why there is no `bound_strict`."""
    bound_held_out: Number
    bound_held_out_all_runs: Number
    """Bounds from the test documents; the second for whoever names the best run of the sweep by it. Neither pays for
    the alternatives of `extra_bits`, which must not have been compared on these documents."""
    bounds: dict[str, Number]
    """The bound by every inequality that fits the premises."""
    score_tolerance_bits: Number
    """How far a loss may be from the exact one, contained in every bound on a loss."""
    by_source: dict[str, Number]
    """The bound over sources with what it rests on; empty without a draw of sources."""
    bound_direct: Number
    """The bound by `bound_inequality` down to guessing, without an anchor."""
    certified_gain_bits: Number | None = None
    certified_gain_all_runs_bits: Number | None = None
    """How much less than the frozen base the certified predictor needs at least; None without an anchor."""
    anchor: dict[str, Number]
    """Both parts of the anchored bound and what they rest on; empty without an anchor."""
    empirical_bpd: Number
    """Mean loss of the scored units."""
    kl_divergence: Number
    """C ln 2, in nats."""
    compressed_size_bits: Number
    """Bits of the payload."""
    code_bits: Number
    code_items: dict[str, Number]
    """C, and C item by item."""
    smoothing: str
    lower_bits: Number
    upper_bits: Number
    """The range of a document's loss."""
    vacuous_bits: Number
    """log2 V, the loss of guessing."""
    vocab_size: int
    min_targets: int
    """Targets of the shortest document that the population admits."""
    unit: str
    n_units: int
    m_units: int
    n_documents: int
    m_documents: int
    """Units and documents of the training split, and those scored, repeats counted."""
    test_units: int
    sweep_size: int
    delta: Number
    delta_sample: Number
    """The part of delta for the draw; 0 where all units are scored."""
    val_loss_bits: Number
    val_loss_unquantized_bits: Number
    test_loss_bits: Number
    gates: dict[str, int]
    """Group to the number of coordinates that are B's."""
    gamma: dict[str, Number]
    """Group to their share."""
    topk_errors: dict[str, Number]
    topk_bounds: dict[str, Number]
    """Mean top-k errors by k, and the headline bounds on them."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """A record that was edited or half updated contradicts itself in one of these."""
        itemised = sum(self.code_items.values())
        if abs(itemised - self.code_bits) > TOLERANCE_BITS:
            raise ValueError(f"code_items sum to {itemised:g} bits, but code_bits is {self.code_bits:g}")
        nats = self.code_bits * LN2
        if not math.isclose(self.kl_divergence, nats, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(f"kl_divergence is {self.kl_divergence:g}, but code_bits x ln 2 is {nats:g}")
        direct = self.bounds.get(self.bound_inequality)
        if direct != self.bound_direct:
            raise ValueError(f"bound_direct is {self.bound_direct:g}, but bounds.{self.bound_inequality} is {direct}")
        if not self.anchor and direct != self.bound_value:
            raise ValueError(f"bound_value is {self.bound_value:g}, but bounds.{self.bound_inequality} is {direct}")
        return self

    @model_validator(mode="after")
    def _anchor_adds_up(self) -> Self:
        """With an anchor the bound is the sum of two, and there is a certified gain."""
        if not self.anchor:
            return self
        total = sum(self.anchor.get(f"{part}_bound", math.nan) for part in ("base", "excess"))
        if not math.isclose(self.bound_value, total, rel_tol=0.0, abs_tol=TOLERANCE_BITS):
            raise ValueError(
                f"bound_value is {self.bound_value:g}, but the bounds on the base's loss and on the excess sum to "
                f"{total:g}"
            )
        for name in ("certified_gain_bits", "certified_gain_all_runs_bits"):
            if getattr(self, name) is None:
                raise ValueError(f"key {name} of bounds.json is None, expected a finite number")
        return self

    def as_json(self) -> dict[str, Any]:
        """The record as plain values. Facts of a run that its grid does not compare are left out."""
        plain = self.model_dump()
        compared = {name for name, field in RunFacts.model_fields.items() if not field.is_required()}
        plain["run"] = {key: fact for key, fact in plain["run"].items() if fact is not None or key not in compared}
        return plain


class StageSeconds(Facts):
    """Wall time of a run's stages."""

    train: Number
    encode: Number
    score: Number
    bound: Number


class PeakMemory(Facts):
    """Peak memory of the stages that use a network, MiB."""

    train: Number
    score: Number


class JobIds(Facts):
    """SLURM's numbers of the jobs; None outside SLURM."""

    train: str | None
    score: str | None


class Environment(Facts):
    """Facts about machines and versions, on which no bound depends and which nobody can recompute."""

    seconds: StageSeconds
    peak_memory_mib: PeakMemory
    versions: dict[str, str]
    gpu: str | None
    commit: str | None
    slurm_job_ids: JobIds


class IndependenceFacts(Facts):
    """Why a pretrained base was fixed without the n documents, in its user's words."""

    training_cutoff: str
    document_dates: str
    how_checked: str


class BaseFacts(Facts):
    """The base that the run adapts."""

    kind: Literal["random", "trained", "pretrained"]
    sha256: str
    independence: IndependenceFacts | None
    """Only of a pretrained base."""


class BoundRecord(Environment, RunBounds):
    """The content of bounds.json: what `RunBounds` computed, the environment, and what it was computed from."""

    base: BaseFacts
    data_hash: str
    certificate_sha256: str

    @model_validator(mode="after")
    def _independence_is_stated(self) -> Self:
        if self.base.kind == "pretrained" and self.base.independence is None:
            raise ValueError("key base.independence of bounds.json is missing, though the base is pretrained")
        return self


ENVIRONMENT_KEYS = tuple(Environment.model_fields)


LARGEST_RECORD = 1 << 20
"""Bytes of a bounds.json that is read: 300 times the demo's."""


def read_record(path: Path, *, missing: str, fix: str) -> BoundRecord:
    """Return the record in a bounds.json.

    UserError if the file is missing, ending in `missing`, or is damaged or of another format, ending in `fix`.
    """
    try:
        return parse_record(record_values(path, missing=missing, fix=fix))
    except ValueError as error:
        raise UserError(f"{path}: {printable(error)}; {fix}") from None


def record_values(path: Path, *, missing: str, fix: str) -> dict[str, Any]:
    """Return the values in a bounds.json of this format, before they are checked as a record.

    UserError as for `read_record`, and for a key that occurs twice.
    """
    found = read_json(path, missing=missing, fix=fix, most_bytes=LARGEST_RECORD, distinct=True)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object; {fix}")
    if found.get("format") != RECORD_FORMAT:
        raise UserError(
            f"{path}: record format {printable(repr(found.get('format')), 40)}, this release reads {RECORD_FORMAT}; "
            f"{fix}, or use the release that wrote it"
        )
    return found


def parse_record(found: Mapping[str, Any]) -> BoundRecord:
    """Return the record that a bounds.json of this format holds; ValueError in one line, which names the key."""
    try:
        return BoundRecord.model_validate(found)
    except ValidationError as error:
        raise ValueError(_in_one_line(error)) from None


def _in_one_line(error: ValidationError) -> str:
    """The first fault. Of a number what it is, of anything else only its kind, since it may be long."""
    fault = error.errors()[0]
    key, found = ".".join(map(str, fault["loc"])), fault["input"]
    if not key:
        return str(fault["ctx"]["error"])
    if fault["type"] == "missing":
        return f"key {key} of bounds.json is missing"
    kinds = {"string_type": "text", "dict_type": "mapping", "model_type": "mapping"}
    if kind := kinds.get(fault["type"]):
        return f"key {key} of bounds.json is missing or no {kind}"
    if fault["type"] == "literal_error":
        expected = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"key {key} of bounds.json is {found}, expected one of {expected}"
    if fault["type"] == "int_type":
        return f"key {key} of bounds.json is {found}, expected a whole number"
    return f"key {key} of bounds.json is {found}, {fault['msg'].removeprefix('Value error, ')}"
