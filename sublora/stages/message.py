"""The message between encoder and decoder: what they agree on, what is charged, and reading it back."""

from pathlib import Path
from typing import Any

from sublora import config
from sublora.coding.certificate import read_certificate
from sublora.coding.payload import MessageContents, Payload, PayloadContext, read_payload, total_code_bits
from sublora.errors import UserError
from sublora.nn.layout import build_layout, group_slices, span_length


def payload_context(settings: config.Settings, run: config.RunSpec) -> PayloadContext:
    """What writer and reader of the message agree on: settings fixed before the data, and the arm."""
    # The number of gates does not depend on the vocabulary.
    groups = build_layout(settings.model, settings.lora, vocab_size=1).groups
    slices = group_slices(run.budget, len(groups), settings.gating.sharing) if run.mode == "learned" else ()
    return PayloadContext(
        budget=run.budget,
        quantizer=settings.message.quantizer,
        levels=settings.message.levels,
        gate_sizes=tuple(map(span_length, slices)),
        smoothing_count=len(settings.scoring.smoothing),
        segment_lengths=(run.budget,),
    )


def charged_bits(items: dict[str, int], settings: config.Settings) -> tuple[float, dict[str, float]]:
    """C and its items for a payload of these items."""
    return total_code_bits(items, sweep_size=len(settings.grid.runs()), extra_bits=settings.message.extra_bits)


def read_message(path: Path) -> tuple[dict[str, Any], MessageContents, Payload]:
    """(header, contents, payload) of a certificate, from its bytes alone; UserError if it cannot be decoded."""
    certificate = read_certificate(path)
    header = certificate.header
    settings = config.parse_settings(header["settings"], source=str(path))
    run = config.RunSpec.model_validate(header["run"])
    try:
        contents, payload = read_payload(certificate.payload_bytes, payload_context(settings, run))
    except ValueError as error:
        raise UserError(f"{path}: {error}; write it again with `sublora encode`") from None
    if payload.bits != certificate.payload_bits:
        raise UserError(f"{path}: the payload decodes in {payload.bits} bits, the file says {certificate.payload_bits}")
    return header, contents, payload
