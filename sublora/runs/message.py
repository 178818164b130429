"""The message between encoder and decoder: what they agree on, what is charged, reading it back, and its one spelling.

The canonical decoder header is one spelling for one predictor, by which the documents to score are drawn. A prover who
could name the same predictor in several ways would have as many draws to choose from. So nothing stands in it by the
name that settings give it: arrays stand as their hashes, w and its gates as the numbers that were decoded, the rule of
scoring as far as the documents see it. Does not import torch.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from sublora import config
from sublora.bounds.anchor import AnchoredMixture
from sublora.bounds.premises import BoundedLoss
from sublora.bounds.smoothing import Smoothing
from sublora.coding.certificate import FIX, read_certificate
from sublora.coding.payload import (
    MessageContents,
    Payload,
    PayloadContext,
    read_payload,
    total_code_bits,
    write_payload,
)
from sublora.losses.bounded import bounded_loss
from sublora.models.spaces import lora_groups
from sublora.subspace.allocations import Gate, parse_allocation
from sublora.system.errors import UserError
from sublora.system.validation import NonNegativeInt, PositiveInt, describe


def run_gates(settings: config.Settings, spec: config.RunSpec) -> tuple[Gate, ...]:
    """Return the gates whose integers the message holds; none where only w is learned."""
    allocation = parse_allocation(spec.allocation)
    if spec.budget == config.ALL or settings.subspace.adapt != "lora":
        return ()
    return allocation.gates(lora_groups(settings.model, settings.lora), spec.budget, settings.gating.sharing)


def payload_context(settings: config.Settings, spec: config.RunSpec, parameters: int | None = None) -> PayloadContext:
    """Return what writer and reader of the message agree on: settings fixed before the data, and the arm.

    parameters: D, for a run with budget all.
    """
    return PayloadContext(
        budget=spec.dimension(parameters),
        quantizer=settings.message.quantizer,
        levels=settings.message.levels,
        gate_sizes=tuple(gate.size for gate in run_gates(settings, spec)),
        smoothing_count=len(settings.scoring.smoothing),
    )


def charged_bits(items: dict[str, int], settings: config.Settings) -> tuple[float, dict[str, float]]:
    """Return C and its items for a payload of these items."""
    return total_code_bits(items, sweep_size=settings.grid.n_runs, extra_bits=settings.message.extra_bits)


MOST_FACTS = 100
LARGEST_VOCABULARY = 1 << 24
"""Tokens; the largest published vocabularies have 2^18."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Point = Annotated[int, Field(ge=-1000, le=1000)]
ScalePoints = Annotated[dict[str, Annotated[list[Point], Field(min_length=1)]], Field(min_length=1)]
"""8 log2 of the gradients by parameter (`sublora.subspace.scales`); the length of a header bounds their number."""


class SourceFacts(config.Section):
    """The sources of the training documents, where a bound over sources is asked for."""

    n: PositiveInt
    sha256: Sha256
    """Hash of the file that says which document is from which source."""


class Header(config.Section):
    """The header of a certificate: exactly these keys."""

    run: config.RunSpec
    settings: dict[str, Any]
    vocab_size: Annotated[int, Field(ge=2, le=LARGEST_VOCABULARY)]
    n_units: PositiveInt
    n_documents: PositiveInt
    data_hash: Sha256
    sources: SourceFacts | None
    longest_targets: PositiveInt
    """Targets of the longest train document."""
    base_sha256: Sha256
    seen_base_sha256: Sha256
    """The base as far as the train documents see it: without position embeddings beyond the longest."""
    space_sha256: Sha256
    """Names, shapes and order of the trained parameters."""
    lora_init_sha256: Sha256
    projection_sha256: Sha256
    parameters: config.Budget | None = None
    """D, in the header of a run with budget all and of no other."""
    scale_points: ScalePoints | None = None
    """What the scales follow from, in the header of a run with subspace.scale and of no other."""
    numerics_versions: Annotated[dict[str, NonNegativeInt], Field(max_length=MOST_FACTS)]
    environment: Annotated[dict[str, str], Field(max_length=MOST_FACTS)]
    """Versions of the packages that encoded; nothing depends on them."""


@dataclasses.dataclass(frozen=True)
class Message:
    """A certificate, decoded from its bytes alone: which run it is from, and what it says."""

    path: Path
    header: Header
    settings: config.Settings
    spec: config.RunSpec
    contents: MessageContents
    payload: Payload
    certificate_sha256: str
    """sha256 of the bytes that were decoded, in hexadecimal."""

    @property
    def loss(self) -> BoundedLoss:
        """The loss that is bounded, as the header's facts have it."""
        return bounded_loss(
            self.settings,
            vocab_size=self.header.vocab_size,
            n_units=self.header.n_units,
            n_documents=self.header.n_documents,
        )

    @property
    def smoothing(self) -> Smoothing:
        """The smoothing that the payload names."""
        return self.loss.candidates[self.contents.smoothing_index]

    @property
    def mixture(self) -> AnchoredMixture | None:
        """The certified predictor's mixture where it is anchored on the base."""
        mixtures = self.loss.mixtures
        return mixtures[self.contents.smoothing_index] if mixtures else None

    @property
    def gates(self) -> tuple[Gate, ...]:
        return run_gates(self.settings, self.spec)


def read_message(path: Path) -> Message:
    """Read and decode a certificate; UserError if it cannot be, or if its bytes are not those an encoder writes."""
    certificate = read_certificate(path)
    try:
        header = Header.model_validate(certificate.header)
    except ValidationError as error:
        raise UserError(f"{path}: header: {describe(error, Header.model_json_schema())}; {FIX}") from None
    settings = config.parse_settings(header.settings, source=str(path)).for_run(header.run)
    if (header.parameters is None) == (header.run.budget == config.ALL):
        raise UserError(f"{path}: header: parameters is {header.parameters} with budget {header.run.budget}; {FIX}")
    if (header.scale_points is None) != (settings.subspace.scale is None):
        found = "missing" if header.scale_points is None else "there"
        raise UserError(f"{path}: header: scale_points is {found} with scale {settings.subspace.scale}; {FIX}")
    try:
        context = payload_context(settings, header.run, header.parameters)
        contents, payload = read_payload(certificate.payload_bytes, context)
        written = write_payload(contents, context)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {FIX}") from None
    if payload.bits != certificate.payload_bits:
        raise UserError(f"{path}: the payload decodes in {payload.bits} bits, the file says {certificate.payload_bits}")
    if not payload.data == written.data == certificate.payload_bytes:
        # Another spelling of the same message would draw other documents for the same predictor.
        raise UserError(f"{path}: the payload is not the one that its contents are encoded as; {FIX}")
    return Message(path, header, settings, header.run, contents, payload, certificate.sha256)


def decoder_header(message: Message) -> dict[str, Any]:
    """Return what the decoded predictor and its losses on these documents depend on, as plain JSON values.

    Two messages with equal headers stand for the same predictor; whether it was named by another seed, ratio, quantizer
    or pattern of targets, or beside other candidates of the smoothing, makes no difference.
    """
    header = message.header
    scale, w_sha256 = _weights(message)
    return {
        # The frozen network, theta at w = 0, and the map from w to theta.
        "base": header.seen_base_sha256,
        "origin": header.lora_init_sha256,
        "projection": header.projection_sha256,
        # How theta enters the network.
        "adapted": {"space": header.space_sha256, "scale": scale, "subtracts_origin": _subtracts_origin(message)},
        "heads": message.settings.model.n_head if isinstance(message.settings.model, config.Model) else None,
        # What the message chose.
        "w": w_sha256,
        "gates": list(message.contents.gates),
        "predictor": _predictor(message),
        # How documents are read.
        "windows": _windows(message),
        "numerics": header.numerics_versions["score"],
    }


def _weights(message: Message) -> tuple[float | None, str]:
    """Return (scale of the adapters, sha256 of w), None for a scale that nothing depends on.

    Where no coordinate reaches an A, as with cores, theta enters the network as scale times w: twice the scale and half
    the step are one predictor, so w stands multiplied by the scale.
    """
    settings, w_d = message.settings, message.contents.weights.values().astype(np.float64)
    scale: float | None = None
    if settings.subspace.adapt == "cores":
        return None, _w_sha256(w_d * (settings.lora.alpha / settings.lora.rank))
    if settings.subspace.adapt == "lora":
        scale = settings.lora.alpha / settings.lora.rank
        if message.gates and all(k == gate.size for k, gate in zip(message.contents.gates, message.gates, strict=True)):
            w_d, scale = w_d * scale, None
    return scale, _w_sha256(w_d)


def _w_sha256(w_d: np.ndarray) -> str:
    # Adding 0.0 gives zero one sign.
    return hashlib.sha256((w_d + 0.0).astype("<f8").tobytes()).hexdigest()


def _subtracts_origin(message: Message) -> bool:
    return message.settings.subspace.adapt == "lora" and message.settings.lora.init == "both_random"


def _predictor(message: Message) -> str | dict[str, int]:
    """Return the chosen smoothing, with an anchor its k and k0."""
    if message.mixture is None:
        return message.smoothing.name
    return {"k": message.mixture.k, "k0": message.mixture.k0}


def _windows(message: Message) -> dict[str, int] | None:
    """Return context and stride of the window; None where every train document fits into one."""
    context_length = message.settings.model.context_length
    if message.header.longest_targets <= context_length:
        return None
    return {"context_length": context_length, "sliding_window": message.settings.scoring.sliding_window}
