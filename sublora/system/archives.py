"""Zip archives of arrays and tensors, .npz and .pt: read without trusting what they say of themselves, and written.

NumPy's own reader believes what a file says of itself: an archive of a few kilobytes may unpack to gigabytes, a header
may promise an array that is not there, a member may be no array. Here every size is compared with the file before
anything is allocated; arrays are plain numbers or text, stored as NumPy writes them, and unpack to a limited multiple
of the file.

A file of torch.save is an archive without compression that holds the pickled object and a version number. It is written
here without torch, whose import takes longer than computing a bound. `torch.load` ignores the archive's own checksums,
so a file is sealed: its last bytes, the archive's comment, are the sha256 of all bytes before them. Other readers of
zip archives and of torch's files ignore a comment.

Importing this module imports neither NumPy nor torch.
"""

import hashlib
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sublora.system.errors import UserError, printable
from sublora.system.files import UNREADABLE, check_regular, read_regular, reason_of, write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_FILE = 1 << 28
"""Bytes of an archive or array that is read; ten million documents take less."""
LARGEST_EXPANSION = 16
"""Bytes that arrays may take for each byte of their archive. Losses take 2, whole numbers in order 6."""
ALWAYS_ALLOWED = 1 << 24
"""Bytes that arrays may take however small the archive is: repeated values compress to almost nothing."""
MOST_MEMBERS = 1000
"""Arrays of an archive."""
KINDS = "biufU"
"""Kinds of NumPy types that are read: truth values, numbers and text; no objects, records or dates."""
LONGEST_HEADER = 1000
BLOCK_BYTES = 1 << 20


def most_unpacked(size: int) -> int:
    """Return how many bytes the arrays in a file of this size may take, eight for each number."""
    return max(ALWAYS_ALLOWED, LARGEST_EXPANSION * size)


class Archive:
    """The arrays of an .npz file, each unpacked when it is asked for.

    Every method raises ValueError, in one line, for what it cannot read.
    """

    def __init__(self, data: bytes) -> None:
        """Read the directory of an archive."""
        try:
            # From memory: where a damaged archive points outside itself, a file would blame the operating system.
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (*UNREADABLE, OSError) as error:
            raise ValueError(reason_of(error)) from None
        members = self._zip.infolist()
        if len(members) > MOST_MEMBERS:
            raise ValueError(f"it holds {len(members)} members, expected at most {MOST_MEMBERS}")
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) < len(members):
            raise ValueError("two of its members have one name")
        self._bytes_left = most_unpacked(len(data))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, without .npy, in the order of the archive."""
        return tuple(self._members)

    def read(self, name: str) -> "NDArray[Any]":
        """Unpack one array."""
        member = self._members[name]
        # Other packings have no limit on what a block of the file unpacks to.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is packed or encrypted in a way that NumPy does not write")
        if member.file_size > self._bytes_left:
            raise ValueError(
                f"{member.filename} unpacks to {member.file_size:,} bytes, more than {LARGEST_EXPANSION} times the "
                "file; store it without compression"
            )
        try:
            with self._zip.open(member) as handle:
                values = read_array(handle, member.file_size)
        except zipfile.BadZipFile:
            raise ValueError(f"{member.filename} has another checksum") from None
        except (*UNREADABLE, OSError) as error:
            raise ValueError(f"{member.filename}: {reason_of(error)}") from None
        # Small numbers count as large as what is computed from them.
        self._bytes_left -= max(member.file_size, 8 * values.size)
        if self._bytes_left < 0:
            raise ValueError(
                f"{member.filename} holds more numbers than a file of this size; store it without compression"
            )
        return values


def read_array(handle: "BinaryIO | Any", size: int) -> "NDArray[Any]":
    """Read an array in the format of .npy from the next `size` bytes. ValueError if they are not one of `KINDS`."""
    import numpy as np

    # The header: nothing is allocated for what it promises before it is compared with the size.
    version = np.lib.format.read_magic(handle)
    if version != (1, 0):
        raise ValueError(f"an array in format {version[0]}.{version[1]}, expected 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(handle, max_header_size=LONGEST_HEADER)
    if dtype.kind not in KINDS or dtype.subdtype is not None or not dtype.itemsize:
        raise ValueError(f"an array of {dtype}, expected numbers or text")
    promised, held = math.prod(shape) * dtype.itemsize, size - handle.tell()
    if promised != held or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} and {dtype}, which takes {promised} bytes, in {held} bytes")
    # The values, block by block into their place.
    values, position = np.empty(held, dtype=np.uint8), 0
    while position < held:
        block = handle.read(min(BLOCK_BYTES, held - position))
        if not block:
            raise ValueError(f"it ends after {position} of {held} bytes")
        values[position : position + len(block)] = np.frombuffer(block, dtype=np.uint8)
        position += len(block)
    return values.view(dtype).reshape(shape, order="F" if fortran_order else "C")


def read_npz(path: Path, *, missing: str, fix: str) -> "dict[str, NDArray[Any]]":
    """Return the arrays of an archive by name, nothing unpickled.

    UserError if it is not there, ending in `missing`, or is damaged, ending in `fix`.
    """
    try:
        archive = Archive(read_regular(path, most_bytes=LARGEST_FILE))
        return {name: archive.read(name) for name in archive.names}
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({printable(error, 100)}); {fix}") from None


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
