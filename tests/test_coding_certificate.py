"""certificate.bin: round trip, determinism, and the refusal of every damage."""

import hashlib
import struct

import numpy as np
import pytest

from sublora.coding.certificate import MAGIC, read_certificate, write_certificate
from sublora.coding.payload import MessageContents, PayloadContext, read_payload, write_payload
from sublora.coding.quantizer import quantize_entropy
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.system.versions import CERTIFICATE_FORMAT

HEADER = {"config_digest": "ab" * 32, "run": {"seed": 42, "budget": 30}, "versions": {"numpy": "2.4.6"}, "a": [0.5, 1]}
CONTEXT = PayloadContext(budget=30, quantizer="entropy", levels=11, gate_sizes=(30, 30), smoothing_count=8)


@pytest.fixture
def payload():
    weights = quantize_entropy(generator(1, "w").normal(size=30), 0.5)
    return write_payload(MessageContents(weights, (3, 30), 7), CONTEXT)


@pytest.fixture
def path(tmp_path, payload):
    path = tmp_path / "certificate.bin"
    write_certificate(path, HEADER, payload)
    return path


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_certificate(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def sealed(body):
    """A file whose checksum is right, whatever its fields say."""
    return body + hashlib.sha256(body).digest()


def test_round_trip(path, payload):
    certificate = read_certificate(path)
    assert certificate.header == HEADER
    assert (certificate.payload_bytes, certificate.payload_bits) == (payload.data, payload.bits)
    contents, read = read_payload(certificate.payload_bytes, CONTEXT)
    assert read == payload
    assert (contents.gates, contents.smoothing_index) == ((3, 30), 7)


def test_equal_contents_give_equal_bytes(path, tmp_path, payload):
    other = tmp_path / "other.bin"
    write_certificate(other, dict(reversed(HEADER.items())), payload)
    assert other.read_bytes() == path.read_bytes()


def test_layout(path, payload):
    data = path.read_bytes()
    assert data[:8] == MAGIC
    version, header_bytes = struct.unpack(">HI", data[8:14])
    assert version == CERTIFICATE_FORMAT
    assert struct.unpack(">Q", data[14 + header_bytes : 22 + header_bytes])[0] == payload.bits
    assert data[22 + header_bytes :] == payload.data + hashlib.sha256(data[:-32]).digest()


def test_every_flipped_byte_is_refused(path, payload):
    data = path.read_bytes()
    header_end = len(data) - 32 - len(payload.data) - 8
    expected = [
        (range(8), "not a certificate"),
        (range(8, 10), "certificate format "),
        (range(10, 14), ("truncated: its ", "checksum does not match")),
        (range(14, header_end), "checksum does not match"),
        (range(header_end, header_end + 8), ("truncated: its ", "checksum does not match")),
        (range(header_end + 8, len(data)), "checksum does not match"),
    ]
    assert sum(len(positions) for positions, _ in expected) == len(data)
    for positions, reason in expected:
        for position in positions:
            for bit in (0x01, 0x80):
                damaged = bytearray(data)
                damaged[position] ^= bit
                message = refusal(path, bytes(damaged))
                follows = message.split(" bytes follow")[0].isdigit()
                assert message.startswith(reason) or (isinstance(reason, tuple) and follows), (position, message)


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for length in range(len(data)):
        assert refusal(path, data[:length]).startswith("truncated: its ")
    assert refusal(path, data[:10]).startswith(
        "truncated: its header length should end at byte 14, the file ends at 10; write it again with `sublora encode`"
    )


def test_other_damage_is_refused_with_its_reason(path):
    data = path.read_bytes()
    assert refusal(path, data + b"xyz").startswith("3 bytes follow the certificate's end")
    assert refusal(path, b"PK\x03\x04" + data[4:]).startswith("not a certificate: it begins with b'PK")
    version = struct.pack(">H", CERTIFICATE_FORMAT + 1)
    message = refusal(path, sealed(data[:8] + version + data[10:-32]))
    assert message.startswith(
        f"certificate format {CERTIFICATE_FORMAT + 1}, this release reads {CERTIFICATE_FORMAT}; "
        "verify it with the release that wrote it, or write it again"
    )
    edited = data.replace(b'"seed":42', b'"seed":43')
    assert edited != data
    assert refusal(path, edited).startswith("checksum does not match, the certificate was damaged or edited")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such certificate; write it again with `sublora encode`"):
        read_certificate(tmp_path / "certificate.bin")


def test_headers_that_are_no_plain_json_are_refused(tmp_path, payload):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_certificate(tmp_path / "certificate.bin", {"loss": np.nan}, payload)
    assert not list(tmp_path.iterdir())
