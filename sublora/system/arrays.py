"""Read .npy and .npz files of strangers: every size is compared with the file before anything is allocated.

NumPy's own reader believes what a file says of itself: an archive of a few kilobytes may unpack to gigabytes, a header
may promise an array that is not there, a member may be no array. Here arrays are plain numbers or text, stored as NumPy
writes them, and unpack to a limited multiple of the file. Importing this module does not import NumPy.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sublora.system.errors import UserError, printable
from sublora.system.files import UNREADABLE, read_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_FILE = 1 << 28
"""Bytes of an archive or array that is read; ten million documents take less."""
LARGEST_EXPANSION = 16
"""Bytes that arrays may take for each byte of their archive. Losses take 2, whole numbers in order 6."""
ALWAYS_ALLOWED = 1 << 24
"""Bytes that arrays may take however small the archive is: equal values take next to nothing in it."""
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
            raise ValueError(_reason(error)) from None
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
            raise ValueError(f"{member.filename}: {_reason(error)}") from None
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
