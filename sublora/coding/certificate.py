"""certificate.bin: a frozen payload and everything a reader needs to decode it.

Layout, integers big-endian:

    8 bytes   magic
    2 bytes   format version (sublora.system.versions.CERTIFICATE_FORMAT)
    4 bytes   H, length of the header in bytes
    H bytes   header: JSON, keys sorted, no spaces, ASCII
    8 bytes   P, length of the payload in bits
    ceil(P/8) bytes   payload, padded with zero bits
    32 bytes  sha256 of all bytes before it

The header names what was fixed without the training data (config digest, seeds, projection, quantizer), what a reader
checks for itself (hashes, versions), and the arm, which is charged ceil(log2 |sweep|) bits. Equal headers and payloads
give equal bytes.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.coding.payload import Payload
from sublora.system.digests import SHA256_BYTES, canonical_json
from sublora.system.errors import UserError
from sublora.system.files import parse_json, read_regular, write_bytes
from sublora.system.versions import CERTIFICATE_FORMAT

MAGIC = b"SUBLORA\x00"
FIX = "write it again with `sublora encode`"
LARGEST_HEADER = 1 << 18
"""Bytes of the header; one of the demo has 3,500."""
LARGEST_PAYLOAD_BITS = 1 << 24
"""Bits of the payload: 16 for each of the coefficients that a code holds at most."""
LARGEST_CERTIFICATE = LARGEST_HEADER + LARGEST_PAYLOAD_BITS // 8 + 4096


@dataclass(frozen=True)
class Certificate:
    """The contents of certificate.bin."""

    header: dict[str, Any]
    payload_bytes: bytes
    payload_bits: int
    sha256: str
    """sha256 of the bytes that were parsed, in hexadecimal: a path may give others when it is read again."""


def write_certificate(path: Path, header: Mapping[str, Any], payload: Payload) -> None:
    """Write certificate.bin. ValueError as for `certificate_bytes`."""
    write_bytes(path, certificate_bytes(header, payload))


def certificate_bytes(header: Mapping[str, Any], payload: Payload) -> bytes:
    """Return the bytes of certificate.bin.

    ValueError for a header that is not plain JSON (NaN, infinity), and for more than what a reader takes.
    """
    text = canonical_json(dict(header))
    if len(text) > LARGEST_HEADER or payload.bits > LARGEST_PAYLOAD_BITS:
        raise ValueError(
            f"a header of {len(text):,} bytes and a payload of {payload.bits:,} bits; a certificate holds at most "
            f"{LARGEST_HEADER:,} bytes and {LARGEST_PAYLOAD_BITS:,} bits: shorten the lists in the settings, or choose "
            "a smaller budget"
        )
    body = b"".join(
        [
            MAGIC,
            struct.pack(">HI", CERTIFICATE_FORMAT, len(text)),
            text,
            struct.pack(">Q", payload.bits),
            payload.data,
        ]
    )
    return body + hashlib.sha256(body).digest()


def read_certificate(path: Path) -> Certificate:
    """Read and check certificate.bin.

    Raises:
        UserError: the file is missing, is not a certificate, has another format version, is truncated, is longer than
            it says or than a certificate may be, or does not match its checksum.
    """
    path = Path(path)
    try:
        data = read_regular(path, most_bytes=LARGEST_CERTIFICATE)
    except FileNotFoundError:
        raise UserError(f"{path}: no such certificate; {FIX}") from None
    return parse_certificate(data, path)


def parse_certificate(data: bytes, path: Path) -> Certificate:
    """Check and parse the bytes of a certificate, as `read_certificate` does; errors name `path`."""
    # Magic and version come first, since other formats have other fields.
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise UserError(f"{path}: not a certificate: it begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}; {FIX}")
    fields = _Fields(path, data, len(MAGIC))
    (version,) = struct.unpack(">H", fields.take(2, "format version"))
    if version != CERTIFICATE_FORMAT:
        raise UserError(
            f"{path}: certificate format {version}, this release reads {CERTIFICATE_FORMAT}; verify it with the "
            f"release that wrote it, or {FIX}"
        )
    (header_bytes,) = struct.unpack(">I", fields.take(4, "header length"))
    text = fields.take(header_bytes, "header")
    fields.check("header", header_bytes, LARGEST_HEADER, "bytes")
    (payload_bits,) = struct.unpack(">Q", fields.take(8, "payload length"))
    payload_bytes = fields.take((payload_bits + 7) // 8, "payload")
    fields.check("payload", payload_bits, LARGEST_PAYLOAD_BITS, "bits")
    body_bytes = fields.position
    # The checksum covers everything before it, and ends the file.
    checksum = fields.take(SHA256_BYTES, "checksum")
    if len(data) > fields.position:
        raise UserError(f"{path}: {len(data) - fields.position} bytes follow the certificate's end; {FIX}")
    if hashlib.sha256(data[:body_bytes]).digest() != checksum:
        raise UserError(f"{path}: checksum does not match, the certificate was damaged or edited; {FIX}")
    return Certificate(_header(path, text), payload_bytes, payload_bits, hashlib.sha256(data).hexdigest())


def _header(path: Path, text: bytes) -> dict[str, Any]:
    """Return the header's fields. Only their canonical text is accepted: no repeated key, no NaN, no other spelling."""
    try:
        header = parse_json(text)
        canonical = isinstance(header, dict) and canonical_json(header) == text
    except ValueError:
        canonical = False
    if not canonical:
        raise UserError(f"{path}: its header is not canonical JSON; {FIX}")
    return header


class _Fields:
    """Takes fields one after another; a file that ends inside a field is refused with the field's name."""

    def __init__(self, path: Path, data: bytes, position: int) -> None:
        self._path, self._data, self.position = path, data, position

    def take(self, count: int, name: str) -> bytes:
        """Return the next `count` bytes. UserError, which calls them `name`, if the file ends before."""
        end = self.position + count
        if end > len(self._data):
            raise UserError(
                f"{self._path}: truncated: its {name} should end at byte {end}, the file ends at {len(self._data)}; "
                f"{FIX}"
            )
        field = self._data[self.position : end]
        self.position = end
        return field

    def check(self, name: str, found: int, most: int, unit: str) -> None:
        """Raise UserError if a field is longer than a certificate's may be."""
        if found > most:
            raise UserError(f"{self._path}: its {name} has {found:,} {unit}, expected at most {most:,}; {FIX}")
