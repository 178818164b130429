"""Write a file that `torch.load` reads, without torch, whose import takes longer than computing a bound.

The format is that of torch.save: a zip archive without compression that holds the pickled object and a version number.
`torch.load` ignores the archive's own checksums, so a file is sealed: its last bytes, the archive's comment, are the
sha256 of all bytes before them. Other readers of zip archives and of torch's files ignore a comment.
"""

import hashlib
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sublora.system.errors import UserError, printable
from sublora.system.files import UNREADABLE, check_regular, write_bytes

PICKLE_PROTOCOL = 2
"""The protocol that torch.save uses."""
ARCHIVE_VERSION = b"3\n"
ALWAYS_THE_SAME_DATE = (1980, 1, 1, 0, 0, 0)
SEAL_PREFIX = b"sha256 "
SEAL_BYTES = len(SEAL_PREFIX) + 2 * hashlib.sha256().digest_size
NO_COMMENT = b"\0\0"
"""The end of an archive without a comment: the length of the comment."""


def sealed(archive: bytes | memoryview) -> bytes:
    """Return a zip archive with the sha256 of its bytes as its comment; ValueError if it already has a comment."""
    if bytes(archive[-len(NO_COMMENT) :]) != NO_COMMENT:
        raise ValueError("the archive ends in a comment")
    body = bytes(archive[: -len(NO_COMMENT)]) + SEAL_BYTES.to_bytes(2, "little")
    return body + SEAL_PREFIX + hashlib.sha256(body).hexdigest().encode()


def check_seal(path: Path, *, fix: str, block_bytes: int = 1 << 20) -> None:
    """Read a sealed file through. UserError, ending in `fix`, if it has no seal or one that does not match."""
    digest, left = hashlib.sha256(), check_regular(path) - SEAL_BYTES
    with open(path, "rb") as handle:
        while left > 0 and (block := handle.read(min(left, block_bytes))):
            digest.update(block)
            left -= len(block)
        seal = handle.read()
    if left < 0 or not seal.startswith(SEAL_PREFIX):
        raise UserError(f"{path}: no checksum at its end: cut short, or written by an older version; {fix}")
    if seal != SEAL_PREFIX + digest.hexdigest().encode():
        raise UserError(f"{path}: damaged: its contents do not have the checksum at its end; {fix}")


TENSORS_NEED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch.serialization _get_layout",
        *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")),
    }
)
"""What the pickles of files that this package writes name."""


def check_members(path: Path, *, fix: str) -> None:
    """Check a file of torch.save before `torch.load` unpacks it. UserError, ending in `fix`.

    Even with weights_only=True, a pickle may ask for a gigabyte of zeros, and a compressed archive may hold one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("it unpacks to more than it holds")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_pickle(archive.read(member))
    except FileNotFoundError:
        raise
    except (*UNREADABLE, OSError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({printable(reason)}); {fix}") from None


def _check_pickle(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        names_something = opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
        if names_something and not (opcode.name == "GLOBAL" and argument in TENSORS_NEED):
            raise ValueError(f"it names {argument or opcode.name}, which no tensor needs")


def save_numbers(path: Path, numbers: Mapping[str, int | float]) -> None:
    """Write plain numbers by name, so that torch.load(path, weights_only=True) returns them as a dict.

    Raises:
        TypeError: a number is not Python's own int or float, the only types that such a reader takes.
    """
    for name, value in numbers.items():
        if type(value) not in (int, float):
            raise TypeError(f"{name} is {type(value).__name__}, expected int or float")
    content = {"data.pkl": pickle.dumps(dict(numbers), protocol=PICKLE_PROTOCOL), "version": ARCHIVE_VERSION}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", ALWAYS_THE_SAME_DATE), data)
    write_bytes(path, sealed(buffer.getvalue()))
