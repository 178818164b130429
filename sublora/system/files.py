"""Write files so that no reader ever sees half of one, and read and hash files in bounded memory."""

import contextlib
import errno
import hashlib
import json
import lzma
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError, missing_extra


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


def absolute(path: Path | str) -> Path:
    """Return the absolute path as it was named: links are kept, and `..` leads where the system says.

    A linked folder or file lies where its link is, beside the other folders of an experiment. Beside its target may lie
    those of somebody else.
    """
    path = Path.cwd() / path
    if ".." not in path.parts:
        return path
    after = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:after]).resolve().joinpath(*path.parts[after:])


def name_below(root: Path, path: Path | str) -> str:
    """Return the name by which a file is found from the folder `root`, wherever both are moved together."""
    path, root = absolute(path), absolute(root)
    return str(path.relative_to(root)) if path.is_relative_to(root) else os.path.relpath(path.resolve(), root.resolve())


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


LARGEST_JSON = 1 << 26
"""Bytes of a JSON file that is read."""
NO_FILE = "a pipe or a device, expected a file; write what it gives to a file"
DEEPEST_JSON = 64
"""Values inside values in JSON; what this package writes has fewer than 10."""


def check_regular(path: Path) -> int:
    """Return the bytes of a file. UserError if it is a named pipe or a device, which could keep a reader waiting."""
    facts = os.stat(path)
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise UserError(f"{path}: {NO_FILE}")
    return facts.st_size


def read_regular(path: Path, *, most_bytes: int) -> bytes:
    """Return the bytes of a file. UserError if it is longer, or is no regular file.

    A named pipe or a device could keep its reader waiting, or never end. Errors of the operating system pass.
    """
    # Without O_NONBLOCK already opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{path}: {NO_FILE}")
        if facts.st_size > most_bytes:
            raise UserError(f"{path}: {facts.st_size:,} bytes, expected at most {most_bytes:,}")
        with open(descriptor, "rb", closefd=False) as handle:
            return handle.read(facts.st_size)
    finally:
        os.close(descriptor)


def read_json(path: Path, *, missing: str, fix: str, most_bytes: int = LARGEST_JSON, distinct: bool = False) -> Any:
    """Read JSON. UserError if the file is missing, ending in `missing`, or is not JSON, ending in `fix`.

    distinct: refuse an object that names a key twice, of which readers may take either.
    """
    try:
        return parse_json(read_regular(path, most_bytes=most_bytes), distinct=distinct)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{missing}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {fix}") from None


def parse_json(data: bytes, *, distinct: bool = False) -> Any:
    """Parse JSON. ValueError for other text, no Unicode, values nested too deep and, with `distinct`, a key twice."""
    hook = _distinct_keys if distinct else None
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # Whoever walks through the value, as printing it does, must not run out of stack.
    level, depth = [value], 0
    while level := [each for item in level if isinstance(item, dict | list) for each in _inside(item)]:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError("nested too deep")
    # Half of a surrogate pair can be written as an escape in JSON, and in no file as text.
    if b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


UNREADABLE = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, SyntaxError, MemoryError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What numpy and zipfile raise for damaged archives and arrays.

MemoryError where a header promises more than the file holds, RuntimeError where it claims that a member is encrypted;
RecursionError is a RuntimeError.
"""


def reason_of(error: BaseException) -> str:
    """Return what an error of a damaged file says, in one line that is the same in every version of Python."""
    if isinstance(error, tokenize.TokenError | SyntaxError):
        return "the header of an array cannot be read"
    return " ".join(str(error).split())[:200] or type(error).__name__


def sha256_of_file(path: Path, block_bytes: int = 1 << 20) -> str:
    """Return the sha256 of a file, in hexadecimal; `block_bytes` of it are in memory at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(block_bytes):
            digest.update(block)
    return digest.hexdigest()
