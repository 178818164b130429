"""Files made to crash, hang or exhaust whoever verifies, decodes or certifies them: one line, in seconds, in 200 MB.

One process reads all of them (tests/hostile.py), since importing torch takes longer than refusing any of them. The
table in docs/studies/attacks.md names these files.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from attacks import RUN, honest_runs

from sublora.coding.bits import BitWriter, bytes_to_bits
from sublora.coding.certificate import read_certificate
from sublora.coding.magnitudes import (
    FRESH,
    MAX_COEFFICIENTS,
    MAX_FLAGS,
    MAX_MAGNITUDE,
    MAX_PLANES,
    UNIT,
    encode_magnitudes,
    next_prior,
)
from sublora.coding.payload import MessageContents, PayloadContext, write_payload
from sublora.coding.quantizer import STEP_BITS, EntropyWeights
from sublora.coding.range_coder import AdaptiveFlag, RangeEncoder
from sublora.runs.message import read_message
from sublora.system.archives import sealed
from sublora.system.files import sha256_of_file
from sublora.system.streams import generator

pytestmark = pytest.mark.slow
Bits = np.ndarray


class Stranger:
    """A copy of a run's folder in which anything may be written."""

    def __init__(self, honest: Path, folder: Path) -> None:
        shutil.copytree(honest / "results/runs" / RUN, folder)
        self.path = folder
        certificate = read_certificate(folder / "certificate.bin")
        self.header: dict[str, Any] = certificate.header
        self.payload = bytes_to_bits(certificate.payload_bytes)[: certificate.payload_bits]

    def write(self, name: str, data: bytes | str) -> None:
        (self.path / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    def certificate(self, payload: Bits | None = None, header: bytes | None = None, **settings: dict) -> None:
        """A certificate of this header and payload, with changed settings; the losses claim to be its own."""
        for section, keys in settings.items():
            self.header["settings"][section] |= keys
        bits = self.payload if payload is None else payload
        self.write("certificate.bin", hostile.certificate(self.header if header is None else header, bits))
        with np.load(self.path / "losses.npz") as archive:
            arrays = dict(archive)
        facts = json.loads(str(arrays["provenance"]))
        facts["certificate_sha256"] = sha256_of_file(self.path / "certificate.bin")
        np.savez_compressed(self.path / "losses.npz", **arrays | {"provenance": np.array(json.dumps(facts))})
        claim = json.loads((self.path / "bounds.json").read_text())
        self.write("bounds.json", json.dumps(claim | {"certificate_sha256": facts["certificate_sha256"]}))

    def fifo(self, name: str) -> None:
        (self.path / name).unlink()
        os.mkfifo(self.path / name)

    def losses(self, edit: Callable[[bytes], bytes]) -> None:
        self.write("losses.npz", edit((self.path / "losses.npz").read_bytes()))

    def sized(self, budget: int, weights: EntropyWeights) -> None:
        """An honest message of another dimension."""
        uniform(self, budget)
        context = PayloadContext(budget, "entropy", 11, (), len(self.header["settings"]["scoring"]["smoothing"]))
        written = write_payload(MessageContents(weights, (), 0), context)
        self.certificate(bytes_to_bits(written.data)[: written.bits])


def entropy_payload(stranger: Stranger, magnitudes: list[int], rest: Callable[[BitWriter], object]) -> Bits:
    """The beginning of a payload with these magnitudes, and whatever follows its signs."""
    values = np.zeros(stranger.header["run"]["budget"], dtype=np.int64)
    values[: len(magnitudes)] = magnitudes
    writer, encoder = BitWriter(), RangeEncoder()
    writer.write_uint(500, STEP_BITS)
    encode_magnitudes(encoder, values)
    writer.write_bits(encoder.finish())
    writer.write_bits(np.zeros(np.count_nonzero(values), dtype=np.uint8))
    rest(writer)
    return writer.bits()


def digits(exponent: int) -> Callable[[Stranger], None]:
    """An Elias delta code that says it has 2^exponent digits."""
    return lambda s: s.certificate(
        entropy_payload(s, [MAX_PLANES], lambda writer: writer.write_elias_gamma(1 << exponent))
    )


def zeros_of_gamma(s: Stranger) -> None:
    s.header["settings"]["message"]["quantizer"] = "plain"
    s.certificate(np.zeros(1_000_000, dtype=np.uint8))


def dense(s: Stranger) -> None:
    """As many flags as a message may have, each of them as likely zero as one."""
    count, random = MAX_COEFFICIENTS, generator("dense", 1)
    magnitudes = np.minimum(random.geometric(0.36, size=count), MAX_PLANES) - 1
    magnitudes[np.cumsum(magnitudes) > MAX_FLAGS - count] = 0
    signs = random.integers(2, size=count) * 2 - 1
    s.sized(count, EntropyWeights(magnitudes * signs, 500))


def uniform(s: Stranger, budget: int) -> None:
    """The arm without gates."""
    s.header["run"] |= {"budget": budget, "allocation": "uniform"}
    s.header["settings"]["grid"] |= {"budgets": [budget], "allocations": ["uniform"]}


def too_many_flags(s: Stranger) -> None:
    """Magnitudes that all pass the last plane: hardly a bit for any of them, sixty-four flags for each."""
    count, bits, encoder, prior = MAX_FLAGS // MAX_PLANES + 1, BitWriter(), RangeEncoder(), FRESH
    bits.write_uint(500, STEP_BITS)
    for plane in range(MAX_PLANES):
        encoder.encode_flags(np.ones(count, dtype=np.uint8), AdaptiveFlag(prior.ones, prior.total, UNIT))
        prior = next_prior(plane, prior, count, count)
    bits.write_bits(encoder.finish())
    uniform(s, count)
    s.certificate(bits.bits())


def layers(s: Stranger) -> None:
    """A network of many small layers."""
    s.header["settings"]["model"]["n_layer"] = 1000
    s.sized(40, EntropyWeights(np.zeros(40, dtype=np.int64), 500))


def largest_weights(s: Stranger) -> None:
    """The largest step and symbols: w reaches 3.5e16, and the network computes no numbers."""
    message = read_message(s.path / "certificate.bin")
    count = len(message.contents.weights.values())
    symbols = np.where(np.arange(count) % 2, MAX_MAGNITUDE, -MAX_MAGNITUDE)
    context = PayloadContext(count, "entropy", 11, tuple(gate.size for gate in message.gates), 8)
    gates = tuple(gate.size // 2 for gate in message.gates)
    written = write_payload(MessageContents(EntropyWeights(symbols, (1 << STEP_BITS) - 1), gates, 0), context)
    s.certificate(bytes_to_bits(written.data)[: written.bits])


def grid(count: int) -> Callable[[Stranger], None]:
    """A grid of count^3 runs that holds the claim's own."""

    def write(s: Stranger) -> None:
        shares = [f"fixed-0.{index:04d}" for index in range(1, count)]
        s.certificate(
            grid={
                "budgets": list(range(40, 40 + count)),
                "allocations": ["learned", *shares],
                "seeds": list(range(1, 1 + count)),
            }
        )

    return write


def parameters(s: Stranger) -> None:
    """A w of 10^15 coefficients, as many as the network is said to have parameters."""
    s.header["run"] |= {"budget": "all", "allocation": "uniform"}
    s.header["parameters"] = 10**15
    s.certificate(grid={"budgets": ["all"], "allocations": ["uniform"]}, subspace={"projection": "identity"})


def header_text(edit: Callable[[str], str]) -> Callable[[Stranger], None]:
    """A header whose text was edited."""
    return lambda s: s.certificate(header=edit(json.dumps(s.header, sort_keys=True, separators=(",", ":"))).encode())


def reheaded(**changes: object) -> Callable[[Stranger], None]:
    def write(s: Stranger) -> None:
        s.header |= changes
        s.certificate()

    return write


def resettled(**settings: dict) -> Callable[[Stranger], None]:
    return lambda s: s.certificate(**settings)


def member(name: str, data: bytes) -> Callable[[Stranger], None]:
    return lambda s: s.losses(lambda archive: hostile.with_member(archive, name, data))


def bomb(descr: str, count: int, compression: int) -> Callable[[Stranger], None]:
    return lambda s: s.losses(
        lambda archive: hostile.zeros_member(archive, "losses_bits.npy", descr, count, compression)
    )


def structured(s: Stranger) -> None:
    """Losses that are records of two numbers, of the right length."""
    values = np.zeros(50, dtype=[("loss", "<f8"), ("other", "<f8")])
    s.losses(
        lambda archive: hostile.with_member(
            archive, "losses_bits.npy", hostile.npy_header(values.dtype.descr, (50,)) + values.tobytes()
        )
    )


def claim(edit: Callable[[dict], object]) -> Callable[[Stranger], None]:
    def write(s: Stranger) -> None:
        value = json.loads((s.path / "bounds.json").read_text())
        edit(value)
        s.write("bounds.json", json.dumps(value))

    return write


def deep(count: int) -> Callable[[dict], object]:
    def edit(value: dict) -> None:
        for _ in range(count):
            value["versions"] = {"x": value["versions"]}

    return edit


def torch_file(value: object, name: str = "best_ckpt.pt") -> Callable[[Stranger], None]:
    """A sealed checkpoint of any value."""

    def write(s: Stranger) -> None:
        import io

        buffer = io.BytesIO()
        torch.save(value, buffer)
        s.write(name, sealed(buffer.getvalue()))

    return write


def packed_checkpoint(s: Stranger) -> None:
    """Compressed, as torch.save never writes it: 256 MB of zeros in a few kilobytes."""
    import io

    buffer = io.BytesIO()
    torch.save({"format": 3, "raw_model": {"w": torch.zeros(4)}}, buffer)
    with zipfile.ZipFile(buffer) as old:
        members = {each: old.read(each) for each in old.namelist()}
    data = next(name for name in members if "/data/" in name)
    s.write("best_ckpt.pt", sealed(hostile.zipped(members | {data: bytes(1 << 28)})))


class HugeBytes:
    """Unpickles to ten gigabytes of zeros."""

    def __reduce__(self) -> tuple:
        return bytearray, (10**10,)


NO_ANCHOR = dict.fromkeys(("delta_base", "delta_base_sample", "delta_excess_sample"))
VERIFIED, REFUSED, UNREADABLE = "0", "1", "2"
HOSTILE: dict[str, tuple[Callable[[Stranger], object], str, str]] = {
    # The certificate.
    "Elias code of 2^35 digits": (digits(35), UNREADABLE, "more digits than bits"),
    "Elias code of 2^60 digits": (digits(60), UNREADABLE, "more digits than bits"),
    "a million zeros before a length": (zeros_of_gamma, UNREADABLE, "ends early"),
    "budget 10^9": (
        lambda s: (s.header["run"].update(budget=10**9), s.certificate(grid={"budgets": [10**9]})),
        UNREADABLE,
        "run.budget: expected at most",
    ),
    "the largest budget, as few bits as it takes": (
        lambda s: s.sized(MAX_COEFFICIENTS, EntropyWeights(np.zeros(MAX_COEFFICIENTS, dtype=np.int64), 500)),
        UNREADABLE,
        "exceeds the",
    ),
    "the largest budget, as many bits as it takes": (dense, UNREADABLE, "exceeds the"),
    "sixty-four flags for each coefficient": (too_many_flags, UNREADABLE, "take more than"),
    "the largest step and symbols": (largest_weights, REFUSED, "losses of the decoded network are numbers"),
    "10^15 parameters": (parameters, UNREADABLE, "parameters: input should be less than"),
    "10^15 units": (reheaded(n_units=10**15, n_documents=10**15), REFUSED, "training documents"),
    "a header nested 600 deep": (
        header_text(lambda text: text.replace('"settings":{', '"settings":{"a":' + "[" * 600 + "]" * 600 + ",")),
        UNREADABLE,
        "not canonical JSON",
    ),
    "settings nested 60 deep": (
        header_text(lambda text: text.replace('"settings":{', '"settings":{"a":' + "[" * 55 + "]" * 55 + ",")),
        UNREADABLE,
        "unknown key 'a'",
    ),
    "a header of a gigabyte": (
        lambda s: s.write("certificate.bin", b"SUBLORA\x00\x00\x03\x40\x00\x00\x00" + b"{" * 1000),
        UNREADABLE,
        "truncated: its header should end at byte",
    ),
    "a payload of 2^60 bits": (
        lambda s: s.write(
            "certificate.bin", hostile.certificate(s.header, s.payload)[:-200].replace(b"\0\0\0\0", b"\x10\0\0\0")
        ),
        UNREADABLE,
        "certificate.bin: ",
    ),
    "a certificate of 64 MiB": (
        lambda s: s.write("certificate.bin", hostile.certificate(s.header, np.zeros(1 << 29, dtype=np.uint8))),
        UNREADABLE,
        "bytes, expected at most",
    ),
    "20,000 unknown keys": (
        header_text(
            lambda text: text.replace(
                '"settings":{', '"settings":{' + "".join(f'"a{index:05d}":1,' for index in range(20_000))
            )
        ),
        UNREADABLE,
        "and 19,9",
    ),
    "20,000 versions": (
        lambda s: (s.header["environment"].update({f"a{i}": "1" for i in range(15_000)}), s.certificate()),
        UNREADABLE,
        "environment",
    ),
    "a grid of 10^6 runs": (grid(100), REFUSED, "NOT verified"),
    "a grid of 10^9 runs": (grid(1000), REFUSED, "NOT verified"),
    "a grid that no header holds": (
        resettled(
            grid={
                "budgets": list(range(1, 9001)),
                "seeds": list(range(9000)),
                "sizes": [f"1x1x{i}" for i in range(1, 9001)],
                "trained": None,
                "allocations": [f"fixed-0.{i:06d}" for i in range(1, 9000)],
            }
        ),
        UNREADABLE,
        "certificate.bin: ",
    ),
    "m = 10^9": (resettled(scoring={"documents": 10**9}), UNREADABLE, "scoring.documents: expected all or at most"),
    "m = 10^7": (resettled(scoring={"documents": 10**7}), REFUSED, "NOT verified"),
    "scoring_batch_tokens 10^8": (
        resettled(compute={"scoring_batch_tokens": 10**8}),
        UNREADABLE,
        "compute.scoring_batch_tokens",
    ),
    "scoring_batch_tokens 10^7": (
        resettled(compute={"scoring_batch_tokens": 10**7, "threads": 10**9}),
        VERIFIED,
        "verified",
    ),
    "extra_bits 2000": (resettled(message={"extra_bits": 2000.0}), UNREADABLE, "message.extra_bits"),
    "extra_bits 900": (resettled(message={"extra_bits": 900.0}), REFUSED, "NOT verified"),
    "delta 5e-324": (
        resettled(bound={"delta": 1e-323, "delta_sample": 5e-324}),
        UNREADABLE,
        "bound.delta: input should be greater",
    ),
    "the smallest delta": (
        resettled(bound=NO_ANCHOR | {"delta": 2e-30, "delta_sample": 1e-30}, message={"extra_bits": 900.0}),
        REFUSED,
        "NOT verified",
    ),
    "token(5e-324)": (
        resettled(scoring={"smoothing": ["token(5e-324)"] * 8}),
        UNREADABLE,
        "expected token(a) with 1e-30",
    ),
    "token(1e-30)": (
        resettled(scoring={"smoothing": [f"token({i}e-30)" for i in range(1, 9)]}),
        REFUSED,
        "NOT verified",
    ),
    "5,000 smoothings": (
        resettled(scoring={"smoothing": [f"token(0.{i:05d}1)" for i in range(5000)]}),
        UNREADABLE,
        "scoring.smoothing",
    ),
    "a network of 10^15 weights": (
        resettled(model={"n_embd": 1 << 22}),
        UNREADABLE,
        "use a machine with more memory",
    ),
    "adapters of rank 10^7": (resettled(lora={"rank": 10**7}), UNREADABLE, "use a machine with more memory"),
    "10,000 layers": (resettled(model={"n_layer": 10_000}), UNREADABLE, "model.n_layer: input should be less"),
    "1,000 layers": (layers, REFUSED, "differs in: base weights"),
    # The files beside it.
    "a FIFO as bounds.json": (lambda s: s.fifo("bounds.json"), UNREADABLE, "a pipe or a device"),
    "a FIFO as certificate.bin": (lambda s: s.fifo("certificate.bin"), UNREADABLE, "a pipe or a device"),
    "a FIFO as losses.npz": (lambda s: s.fifo("losses.npz"), UNREADABLE, "a pipe or a device"),
    "a FIFO as bounds_metrics.pt": (lambda s: s.fifo("bounds_metrics.pt"), UNREADABLE, "a pipe or a device"),
    "bounds.json nested 600 deep": (claim(deep(600)), UNREADABLE, "nested too deep"),
    "bounds.json of 64 MiB": (lambda s: s.write("bounds.json", b" " * (1 << 26)), UNREADABLE, "expected at most"),
    "bounds.json with 40,000 more keys": (
        claim(lambda value: value.update({f"k{index}": 1 for index in range(40_000)})),
        REFUSED,
        "further keys",
    ),
    "bounds.json with 40,000 versions": (
        claim(lambda value: value["versions"].update({f"k{index}": "1" for index in range(40_000)})),
        REFUSED,
        "further",
    ),
    "bounds.json of other types": (
        claim(lambda value: value.update(versions=[], seconds=1, bounds=None, anchor=[[]], gates="x")),
        REFUSED,
        "versions",
    ),
    "structured arrays": (structured, UNREADABLE, "expected numbers or text"),
    "a member that is no array": (member("losses_bits.npy", b"losses"), UNREADABLE, "losses_bits.npy"),
    "a member of another kind": (member("README.txt", b"losses"), UNREADABLE, "README.txt"),
    "an array of objects": (
        member("losses_bits.npy", hostile.npy_header("|O", (50,)) + b"cos\nsystem\n."),
        UNREADABLE,
        "expected numbers",
    ),
    "an array that promises a terabyte": (
        member("losses_bits.npy", hostile.npy_header("<f8", (1 << 37,)) + bytes(400)),
        UNREADABLE,
        "which takes",
    ),
    "an array of a negative length": (
        member("losses_bits.npy", hostile.npy_header("<f8", (-5, -10)) + bytes(400)),
        UNREADABLE,
        "losses_bits.npy",
    ),
    "a zip bomb of 1.3 GB": (bomb("<f8", 170_000_000, zipfile.ZIP_DEFLATED), UNREADABLE, "times the file"),
    "a zip bomb in bzip2": (bomb("<f8", 4_000_000, zipfile.ZIP_BZIP2), UNREADABLE, "NumPy does not write"),
    "a zip bomb in lzma": (bomb("<f8", 4_000_000, zipfile.ZIP_LZMA), UNREADABLE, "NumPy does not write"),
    "16 million losses of a byte": (bomb("|u1", 16_000_000, zipfile.ZIP_DEFLATED), UNREADABLE, "store it without"),
    "100,000 members": (
        lambda s: s.write("losses.npz", hostile.zipped({f"a{index}.npy": b"" for index in range(100_000)})),
        UNREADABLE,
        "members, expected at most",
    ),
    "a checkpoint that is a list": (torch_file([1, 2, 3]), UNREADABLE, "checkpoint format list"),
    "a checkpoint whose model is a list": (
        torch_file({"format": 3, "base_sha256": "0" * 64, "raw_model": [1]}),
        UNREADABLE,
        "raw_model is no table",
    ),
    "a checkpoint without a base": (torch_file({"format": 3, "raw_model": {}}), UNREADABLE, "base_sha256 is missing"),
    "a checkpoint of ten gigabytes": (torch_file(HugeBytes()), UNREADABLE, "which no tensor needs"),
    "a packed checkpoint": (packed_checkpoint, UNREADABLE, "unpacks to more than it holds"),
    "bounds_metrics.pt that is a list": (torch_file([1], "bounds_metrics.pt"), UNREADABLE, "checkpoint format list"),
}


@pytest.fixture(scope="module")
def honest(honest_root, tmp_path_factory) -> Path:
    return honest_runs(honest_root, tmp_path_factory.mktemp("hostile") / "root")


def results(commands: list[tuple[str, list[str]]], folder: Path) -> dict[str, dict[str, Any]]:
    """What came of each command, read by one process with limits; a case that killed it has only begun."""
    (folder / "commands.json").write_text(json.dumps(commands))
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    command = [sys.executable, hostile.__file__, str(folder / "commands.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    found: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        facts = json.loads(line)
        found[facts["name"]] = facts
    assert list(found) == [name for name, _ in commands], (list(found)[-1:], done.stderr[-2000:])
    return found


def wrong_ones(found: dict[str, dict[str, Any]], expected: dict[str, tuple[str, str]]) -> list[str]:
    """Cases that ended in another way than expected, or took too long."""
    return [
        f"{name}: expected {status} and {text!r}, found {found[name]}"
        for name, (status, text) in expected.items()
        if found[name]["status"] != status
        or text not in found[name]["line"]
        or found[name]["seconds"] > hostile.MOST_SECONDS
        or found[name]["mib"] > hostile.MOST_MIB
    ]


def report(found: dict[str, dict[str, Any]]) -> None:
    """Write what was measured where SUBLORA_HOSTILE names a file, for the table in docs/studies/attacks.md."""
    if path := os.environ.get("SUBLORA_HOSTILE"):
        with open(path, "a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(facts) + "\n" for facts in found.values())


def test_hostile_claims_end_in_one_line_within_seconds_and_200_mb(honest, tmp_path):
    root = ["--root", str(honest)]
    commands = [("honest", ["verify", str(honest / "results/runs" / RUN), *root])]
    for index, (name, (write, _, _)) in enumerate(HOSTILE.items()):
        stranger = Stranger(honest, tmp_path / str(index))
        write(stranger)
        commands.append((name, ["verify", str(stranger.path), *root]))
    found = results(commands, tmp_path)
    report(found)
    expected = {name: (status, text) for name, (_, status, text) in HOSTILE.items()}
    assert not wrong_ones(found, {"honest": ("0", "verified"), **expected})


DECODED = [name for name in HOSTILE if name not in list(HOSTILE)[list(HOSTILE).index("a FIFO as bounds.json") :]]
"""The cases that are about the certificate itself."""
NO_FAULT_OF_THE_DECODER = ("0", UNREADABLE)
"""A certificate that claims too much may still name a network."""


def test_hostile_certificates_are_decoded_or_refused(honest, tmp_path):
    root = ["--root", str(honest), "--tokens", "2"]
    commands = [("honest", ["generate", str(honest / "results/runs" / RUN), *root])]
    for index, name in enumerate([*DECODED, "a FIFO as certificate.bin"]):
        stranger = Stranger(honest, tmp_path / str(index))
        HOSTILE[name][0](stranger)
        commands.append((name, ["generate", str(stranger.path), *root]))
    found = results(commands, tmp_path)
    assert found["honest"]["status"] == "0"
    assert not wrong_ones(
        found,
        {name: (facts["status"], "") for name, facts in found.items() if facts["status"] in NO_FAULT_OF_THE_DECODER},
    )
    assert not [facts for facts in found.values() if facts["status"] not in NO_FAULT_OF_THE_DECODER]
