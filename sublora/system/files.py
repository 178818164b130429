"""Write files so that no reader ever sees half of one, read JSON and arrays, and hash files in bounded memory."""

import contextlib
import errno
import hashlib
import io
import json
import lzma
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError, missing_extra, printable


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` if the block succeeds, else delete it.

    The data are flushed to disk before the rename, so that after a crash either the old file or the new one is there,
    whole. UserError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write a file, or files in a folder, into a UserError that names it."""
    try:
        yield
    except OSError as error:
        # A full disk names no file; an error that names a file elsewhere is not about this one.
        if error.filename is None:
            here = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else:
            named = Path(str(error.filename))
            here = named == path or named in path.parents or named.parent in (path, path.parent)
        if here:
            raise UserError(f"{path}: cannot be written ({os_reason(error)}); {_fix(error)}") from None
        raise


_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what `atomic_path` left in a folder when its process was killed.

    Call this only with the lock of the folder: a temporary file of a living process looks the same.
    """
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def os_reason(error: OSError) -> str:
    """Return what the operating system says, without the file's name."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


_FIXES = {
    errno.ENOSPC: "free some space on that disk and start again",
    errno.EFBIG: "raise the largest size of a file (ulimit -f)",
    errno.EDQUOT: "free some of your quota on that disk and start again",
    errno.EROFS: "that disk is read-only: work in another folder",
    errno.EACCES: "give yourself the right to read and write there, or work in another folder",
    errno.EPERM: "give yourself the right to read and write there, or work in another folder",
    errno.ENOTDIR: "a file stands where a folder is expected: move it away",
    errno.EEXIST: "a file stands where a folder is expected: move it away",
    errno.EISDIR: "a folder stands where a file is expected: move it away",
    errno.ENOENT: "correct the path",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.EIO: "the disk cannot be read there: bring the file back from a copy, or make it again",
    errno.ESTALE: "the file server lost the file: start again",
}


def _fix(error: OSError) -> str:
    return _FIXES.get(error.errno or 0, "fix that and start again")


def os_error_line(error: OSError) -> str:
    """Return an operating system's error as a line for the user: the file, the reason, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    return f"{where}{os_reason(error)}; {_fix(error)}"


def user_line(error: Exception) -> str | None:
    """Return the line of an error that a user can fix; None for any other, which is a fault of this package.

    A user can fix a UserError, an error of the operating system, and a missing package that an extra installs.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return os_error_line(error)
    return missing_extra(error, "this command") if isinstance(error, ModuleNotFoundError) else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; UserError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, whole or not at all; ValueError for NaN and infinity."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, *, missing: str, fix: str) -> Any:
    """Read JSON. UserError if the file is missing, ending in `missing`, or is not JSON, ending in `fix`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{missing}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of too many digits, nested too deep
        raise UserError(f"{path}: not valid JSON ({error}); {fix}") from None


UNREADABLE = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, SyntaxError, MemoryError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What numpy and zipfile raise for damaged archives and arrays.

MemoryError where a header promises more than the file holds, RuntimeError where it claims that a member is encrypted;
RecursionError is a RuntimeError.
"""


def read_npz(path: Path, *, missing: str, fix: str) -> dict[str, Any]:
    """Return the arrays of an archive by name, nothing unpickled.

    UserError if it is not there, ending in `missing`, or is damaged, ending in `fix`.
    """
    import numpy as np  # other users of this module do without

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    try:
        # From memory: where a damaged archive points outside itself, a file would blame the operating system.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another checksum")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*UNREADABLE, OSError) as error:
        reason = printable(error, 100) or type(error).__name__
        raise UserError(f"{path}: damaged ({reason}); {fix}") from None


def sha256_of_file(path: Path, block_bytes: int = 1 << 20) -> str:
    """Return the sha256 of a file, in hexadecimal; `block_bytes` of it are in memory at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(block_bytes):
            digest.update(block)
    return digest.hexdigest()
