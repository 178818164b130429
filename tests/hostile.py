"""Files that a stranger may hand over to exhaust, hang or crash whoever reads them, and a process that reads them.

`python tests/hostile.py FILE` reads a list of command lines, [name, arguments], from a JSON file and runs each of them
with a limit on memory and on seconds, and prints for each name its exit status, its last line, seconds and memory.

Memory is address space beyond what the process holds after it has imported torch and run its first command, which
should be an honest one: what importing takes, and what a first run loads for good, is not a matter of the input.
"""

import contextlib
import hashlib
import io
import json
import os
import resource
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

MIB = 1 << 20
MOST_MIB = 200
MOST_SECONDS = 5


# Files


def certificate(header: object, payload: np.ndarray) -> bytes:
    """The bytes of a certificate around any header, as bytes or as a value, and any bits: nothing is checked."""
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = b"SUBLORA\x00" + struct.pack(">HI", 3, len(text)) + text
    body += struct.pack(">Q", len(payload)) + np.packbits(payload).tobytes()
    return body + hashlib.sha256(body).digest()


def npy_header(descr: object, shape: object) -> bytes:
    """The beginning of an .npy file that promises an array."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def encrypted(archive: bytes) -> bytes:
    """An archive whose first member claims to be encrypted."""
    place = archive.index(b"PK\x01\x02") + 8
    return archive[:place] + bytes([archive[place] | 1]) + archive[place + 1 :]


def with_member(archive: bytes, name: str, data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive with one member replaced."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        members = {each: old.read(each) for each in old.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for each, content in (members | {name: data}).items():
            new.writestr(each, content, compression if each == name else zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def zeros_member(archive: bytes, name: str, descr: str, count: int, compression: int) -> bytes:
    """An archive in which one member is an array of that many zeros, made without holding them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        members = {each: old.read(each) for each in old.namelist() if each != name}
    buffer, left = io.BytesIO(), count * np.dtype(descr).itemsize
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for each, content in members.items():
            new.writestr(each, content)
    with (
        zipfile.ZipFile(buffer, "a", compression, compresslevel=1) as new,
        new.open(name, "w", force_zip64=True) as handle,
    ):
        handle.write(npy_header(descr, (count,)))
        while left:
            left -= handle.write(bytes(min(left, MIB)))
    return buffer.getvalue()


# The process


def address_space() -> int:
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])


def peak_mib(reset: bool = False) -> float:
    """Largest resident memory since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def run(arguments: list[str]) -> tuple[str, str]:
    """Exit status, or the exception that nobody caught, and the last line that was printed."""
    from sublora import cli

    sys.argv, output = ["sublora", *arguments], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            cli.main()
            status = "0"
        except SystemExit as stop:
            status = str(stop.code or 0)
        except BaseException as error:
            status = type(error).__name__
            print(repr(error)[:300])
    lines = output.getvalue().strip().splitlines() or [""]
    return status, lines[-1][:6000]


def main(path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    commands = json.loads(path.read_text())
    for index, (name, arguments) in enumerate(commands):
        if index == 1:
            limit = address_space() + MOST_MIB * MIB
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if index:
            used = resource.getrusage(resource.RUSAGE_SELF)
            soft = int(used.ru_utime + used.ru_stime) + MOST_SECONDS + 2
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        before, started, worked = peak_mib(reset=True), time.perf_counter(), time.process_time()
        print(json.dumps({"name": name, "begun": True}), flush=True)
        status, line = run(arguments)
        facts: dict[str, object] = {"name": name, "status": status, "line": line}
        # Of the processor: on a busy machine the clock says little. What waits for ever is found by the caller.
        facts |= {"seconds": round(time.process_time() - worked, 2), "clock": round(time.perf_counter() - started, 2)}
        print(json.dumps(facts | {"mib": round(peak_mib() - before, 1)}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    main(Path(sys.argv[1]))
