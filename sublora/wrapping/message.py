"""The message of a wrapped module: bytes from which anyone who has the module can rebuild the predictor.

The file is a certificate (`sublora.coding.certificate`). Its payload holds everything that the training data chose: w,
the quantization step, the gates, and one choice among alternatives that were listed beforehand. Its header holds what
was fixed without those data, the arguments of `wrap`, and hashes against which a reader checks the module. An argument
that was chosen by looking at the data counts among the `choices`, or its bits belong to `extra_bits`.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from torch import Tensor, nn

from sublora.coding.bits import index_bits
from sublora.coding.certificate import certificate_bytes, parse_certificate
from sublora.coding.payload import (
    MessageContents,
    Payload,
    PayloadContext,
    read_payload,
    total_code_bits,
    write_payload,
)
from sublora.coding.quantizer import ENTROPY, STEP_BITS, EntropyWeights
from sublora.subspace.hashes import lora_init_sha256, projection_sha256
from sublora.system.errors import UserError
from sublora.system.validation import NonNegativeFloat, PositiveInt, Strict, describe
from sublora.training.quantization import symbol_bits
from sublora.wrapping.frozen import base_sha256
from sublora.wrapping.identity import Probe, probe_sums, same_outputs
from sublora.wrapping.module import Wrapped
from sublora.wrapping.targets import WrapArguments

ITEM_NAMES = {"codebook": "step", "symbols": "w", "gates": "gates", "smoothing": "choice", "extra": "extra"}
"""The item of a message by the item of the payload. The others are zero: no length and no counts are written."""
WHAT = Path("message")
"""Names the bytes in errors."""


class WrappedHeader(Strict):
    """The header of a wrapped module's message: exactly these keys."""

    kind: Literal["wrapped"]
    arguments: WrapArguments
    choices: PositiveInt
    extra_bits: NonNegativeFloat
    base_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    architecture_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    buffers: Annotated[float, Field(allow_inf_nan=False)]
    probe: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None
    origin_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    projection_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclasses.dataclass(frozen=True)
class EncodedMessage:
    """A message and its cost."""

    data: bytes
    """Everything that a receiver needs beside the module."""
    bits: float
    """C, which a bound charges for; the header, fixed without the data, is not counted."""
    items: dict[str, float]
    """Bits of step, w, gates, choice and extra; they sum to `bits`."""
    choice: int
    """The alternative that the training data chose."""
    choices: int
    """The number of alternatives."""


class Decoded(NamedTuple):
    """A decoded message: the predictor that it describes, and the message with its bits counted again."""

    predictor: Wrapped
    message: EncodedMessage


def encode(
    wrapped: Wrapped, *, choice: int = 0, choices: int = 1, extra_bits: float = 0.0, probe: Probe | None = None
) -> EncodedMessage:
    """Encode a trained module as a message; its present outputs are those of the decoded predictor.

    Args:
        wrapped: trained, quantized (`Wrapped.quantize` or `anneal`), with hard gates.
        choice: index of whatever else the training data chose (a run of a sweep, a smoothing), below `choices`.
        choices: number of those alternatives, listed before the data were seen; costs ceil(log2 choices) bits.
        extra_bits: log2 of the number of alternatives tried by hand on the training data, which no message names.
        probe: inputs (a tensor, a tuple of arguments, or a mapping of keywords) that do not depend on the training
            data. The header then holds sums of the frozen module's outputs for them, and a reader has to give the same
            inputs. For modules whose `forward` decides what neither a configuration nor attributes say.

    Raises:
        ValueError: w is not quantized or not finite, masks are soft, the module's weights or buffers changed since it
            was wrapped, or a number is out of its range.
    """
    # Refuse what a message cannot describe.
    if not 0 <= choice < choices:
        raise ValueError(f"choice is an index below choices, found {choice} of {choices}")
    if not (math.isfinite(extra_bits) and extra_bits >= 0):
        raise ValueError(f"extra_bits must be finite and not negative, found {extra_bits}")
    if wrapped.mask_width > 0.0:
        raise ValueError("the gates are still soft, which no message names: call anneal(1.0) and score the model after")
    if base_sha256(wrapped.module) != wrapped.identity.base_sha256:
        raise ValueError(
            "the frozen module changed since it was wrapped (running statistics?); its message would be wrong"
        )
    # Encode what the training data chose; the header identifies the rest.
    gates = tuple(int(k) for k in wrapped.subspace.hard_split())
    contents = MessageContents(wrapped.symbols(), gates, choice)
    payload = write_payload(contents, _context(wrapped, choices))
    header = WrappedHeader(
        kind="wrapped",
        arguments=wrapped.arguments,
        choices=choices,
        extra_bits=float(extra_bits),
        base_sha256=wrapped.identity.base_sha256,
        architecture_sha256=wrapped.identity.architecture_sha256,
        buffers=wrapped.identity.buffers,
        probe=None if probe is None else probe_sums(wrapped.module, probe),
        origin_sha256=lora_init_sha256(wrapped.subspace),
        projection_sha256=projection_sha256(wrapped.subspace),
    )
    return _message(certificate_bytes(header.model_dump(mode="json"), payload), payload, contents, header)


def decode(data: bytes, module: nn.Module, *, probe: Probe | None = None) -> Decoded:
    """Rebuild the predictor of a message on the receiver's module.

    Args:
        data: `EncodedMessage.data`.
        module: the network that was wrapped, with the same weights, either plain or wrapped with the arguments that the
            receiver expects. A plain module is wrapped as the header says; check `predictor.arguments` then. It is
            frozen.
        probe: the inputs with which the message was encoded, if it was encoded with any.

    Returns:
        The predictor in evaluation mode, quantized, and the message with C counted from its own bits. The number of
        alternatives and extra_bits are taken from the sender.

    Raises:
        UserError: the bytes are damaged, or belong to other weights, another architecture, other arguments or another
            version of the projection.
    """
    # Wrap the module, and compare it with the sender's.
    certificate = parse_certificate(data, WHAT)
    header = _header(certificate.header)
    wrapped = module if isinstance(module, Wrapped) else _wrapped(module, header.arguments)
    _check_same(header, wrapped, probe)
    # Decode the payload; encoding its contents again must give the same bytes.
    try:
        contents, payload = read_payload(certificate.payload_bytes, _context(wrapped, header.choices))
        written = write_payload(contents, _context(wrapped, header.choices))
        if not payload.data == written.data == certificate.payload_bytes or payload.bits != certificate.payload_bits:
            raise ValueError("the payload is not the one that its contents are encoded as")
        assert isinstance(contents.weights, EntropyWeights)
        wrapped.set_message(contents.weights, contents.gates)
    except ValueError as error:
        raise UserError(f"{WHAT}: {error}; ask for the message again") from None
    wrapped.eval()
    return Decoded(wrapped, _message(data, payload, contents, header))


def _context(wrapped: Wrapped, choices: int) -> PayloadContext:
    sizes = tuple(gate.size for gate in wrapped.subspace.gates)
    return PayloadContext(wrapped.arguments.budget, ENTROPY, 1, sizes, choices)


def _message(data: bytes, payload: Payload, contents: MessageContents, header: WrappedHeader) -> EncodedMessage:
    bits, items = total_code_bits(payload.items, sweep_size=1, extra_bits=header.extra_bits)
    named = {name: items[item] for item, name in ITEM_NAMES.items()}
    if not math.isclose(sum(named.values()), bits):
        raise RuntimeError("an item of the payload has no name in the message")
    return EncodedMessage(data, bits, named, contents.smoothing_index, header.choices)


def _header(fields: dict[str, Any]) -> WrappedHeader:
    try:
        return WrappedHeader.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise UserError(f"{WHAT}: header: {describe(error, WrappedHeader.model_json_schema())}") from None


def _wrapped(module: nn.Module, arguments: WrapArguments) -> Wrapped:
    try:
        return Wrapped(module, arguments)
    except ValueError as error:
        raise UserError(f"{WHAT}: its arguments do not fit this module: {error}") from None


def _check_same(header: WrappedHeader, wrapped: Wrapped, probe: Probe | None) -> None:
    """Raise UserError unless the receiver's module is the sender's."""
    ours, theirs = dict(wrapped.arguments), dict(header.arguments)
    if different := [key for key in ours if ours[key] != theirs[key]]:
        key = different[0]
        raise UserError(f"{WHAT}: wrapped with {key} {theirs[key]!r}, this module with {ours[key]!r}")
    if base_sha256(wrapped.module) != header.base_sha256:
        raise UserError(f"{WHAT}: the weights of this module are not those of the message (sha256 differs)")
    identity = wrapped.identity
    if identity.architecture_sha256 != header.architecture_sha256 or not identity.same_buffers(header.buffers):
        raise UserError(
            f"{WHAT}: this module has the weights of the message and computes something else with them (its "
            "configuration, the attributes of its modules or its unsaved buffers differ)"
        )
    if (header.probe is None) != (probe is None):
        one, other = ("without a", "no") if header.probe is None else ("with a", "the same")
        raise UserError(f"{WHAT}: encoded {one} probe; give decode {other} probe")
    if header.probe is not None and probe is not None:
        try:
            sums = probe_sums(wrapped.module, probe)
        except ValueError as error:
            raise UserError(f"{WHAT}: {error}") from None
        if not same_outputs(sums, header.probe):
            raise UserError(f"{WHAT}: this module has the weights of the message and other outputs for the probe")
    if (lora_init_sha256(wrapped.subspace), projection_sha256(wrapped.subspace)) != (
        header.origin_sha256,
        header.projection_sha256,
    ):
        raise UserError(f"{WHAT}: this version draws another initialization or projection from the same seed")


def message_bits(wrapped: Wrapped) -> Tensor:
    """Return the bits () of the message of the present w, differentiable in w and the step.

    They are zero before w is rounded. The value is that of `sublora.encode` except for what the adaptive code pays for
    learning; it is interpolated between the integers, so that its slope pulls every coordinate to zero. To train for a
    bound, add message_bits(wrapped) times the loss that one bit may cost; for a mean loss in nats over n examples,
    ln(2) / n is the price in a two-part code. ValueError if w is not finite.
    """
    w_S = wrapped.subspace.subspace_params
    if not wrapped.rounding:
        return w_S.new_zeros(())
    gates = sum(index_bits(gate.size + 1) for gate in wrapped.subspace.gates)
    return symbol_bits(w_S / wrapped.trained_step(), wrapped.symbols().symbols) + STEP_BITS + gates
