"""The message between encoder and decoder: what they agree on, what is charged, and reading it back."""

import dataclasses
from pathlib import Path
from typing import Any

from sublora import config
from sublora.bounds.smoothing import Smoothing
from sublora.coding.certificate import read_certificate
from sublora.coding.payload import MessageContents, Payload, PayloadContext, read_payload, total_code_bits
from sublora.errors import UserError
from sublora.losses.bounded import BoundedLoss
from sublora.models.lora_space import lora_groups
from sublora.subspace.allocations import Gate, parse_allocation


def run_gates(settings: config.Settings, spec: config.RunSpec) -> tuple[Gate, ...]:
    """The gates whose integers the message holds, empty where nothing is learned but w."""
    groups = lora_groups(settings.model, settings.lora)
    return parse_allocation(spec.allocation).gates(groups, spec.budget, settings.gating.sharing)


def payload_context(settings: config.Settings, spec: config.RunSpec) -> PayloadContext:
    """What writer and reader of the message agree on: settings fixed before the data, and the arm."""
    return PayloadContext(
        budget=spec.budget,
        quantizer=settings.message.quantizer,
        levels=settings.message.levels,
        gate_sizes=tuple(gate.size for gate in run_gates(settings, spec)),
        smoothing_count=len(settings.scoring.smoothing),
    )


def charged_bits(items: dict[str, int], settings: config.Settings) -> tuple[float, dict[str, float]]:
    """C and its items for a payload of these items."""
    return total_code_bits(items, sweep_size=len(settings.grid.runs()), extra_bits=settings.message.extra_bits)


@dataclasses.dataclass(frozen=True)
class Message:
    """A certificate, decoded from its bytes alone: who it is from, and what it says."""

    path: Path
    header: dict[str, Any]
    settings: config.Settings
    spec: config.RunSpec
    contents: MessageContents
    payload: Payload

    @property
    def loss(self) -> BoundedLoss:
        """The loss that is bounded, as the header's facts have it."""
        vocab_size, n_documents = self.header["vocab_size"], self.header["n_documents"]
        return BoundedLoss.of(self.settings, vocab_size=vocab_size, n_documents=n_documents)

    @property
    def smoothing(self) -> Smoothing:
        """The smoothing that the payload names."""
        return self.loss.candidates[self.contents.smoothing_index]

    @property
    def gates(self) -> tuple[Gate, ...]:
        return run_gates(self.settings, self.spec)


def read_message(path: Path) -> Message:
    """Read and decode a certificate; UserError if it cannot be."""
    certificate = read_certificate(path)
    header = certificate.header
    settings = config.parse_settings(header["settings"], source=str(path))
    spec = config.RunSpec.model_validate(header["run"])
    try:
        contents, payload = read_payload(certificate.payload_bytes, payload_context(settings, spec))
    except ValueError as error:
        raise UserError(f"{path}: {error}; write it again with `sublora encode`") from None
    if payload.bits != certificate.payload_bits:
        raise UserError(f"{path}: the payload decodes in {payload.bits} bits, the file says {certificate.payload_bits}")
    return Message(path, header, settings, spec, contents, payload)
