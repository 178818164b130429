"""The fault matrix: what is wrong, the command that meets it, and what it says.

Every row ends in one line and exit status 2, and changes no file. `python tests/faults/table.py` writes the rows and
their messages to tests/faults/messages.md; the test of a row compares its message with the one that stands there.
"""

import dataclasses
import errno
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from faults.scene import BOUND, CONFIG, DATA, FOLDER, PREPARE, RUN_OPTIONS, SCORE, STATUS, TRAIN, VERIFY, Scene
from sublora.system.names import SETTINGS_NAME, STARTS_NAME

Command = tuple[str, ...]
Break = Callable[[Scene], object]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row."""

    group: str
    what: str
    command: Command
    breaks: Break
    during: Callable[[], object] | None = None
    """A context in which the command runs, such as a limit on the size of files."""

    @property
    def id(self) -> str:
        return f"{self.group}: {self.what}"


@contextmanager
def small_files() -> Iterator[None]:
    """No file can grow beyond 4 KiB, as with `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk() -> Iterator[None]:
    """Nothing that is written reaches the disk except the records of the start: the results are what does not fit."""
    import os

    def full(number: int) -> None:
        path = os.readlink(f"/proc/self/fd/{number}")
        if not any(name in path for name in (STARTS_NAME, SETTINGS_NAME)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real, os.fsync = os.fsync, full
    try:
        yield
    finally:
        os.fsync = real


def aliases() -> str:
    """Nine values, repeated nine times by an alias, nine times over: 387 million in all."""
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def corpus(text: str | bytes) -> Break:
    """A folder corpus that holds a file of lines."""

    def write(scene: Scene) -> None:
        values = {"kind": "folder", "path": "texts", "text_field": "text", "unit_field": None}
        scene.settings(data={"corpus": values, "name": "texts"})
        scene.write("texts/a.jsonl", text)

    return write


def settings(**sections: dict[str, object]) -> Break:
    return lambda scene: scene.settings(**sections)


def entropy(**phase: object) -> Break:
    return settings(message={"quantizer": "entropy"}, rate_phase={"val_documents": 20} | phase)


def meta(edit: Callable[[dict], object]) -> Break:
    return lambda scene: scene.edit_json(f"{DATA}/meta.json", edit)


def losses(edit: Callable[[dict[str, np.ndarray]], object]) -> Break:
    return lambda scene: scene.edit_losses(edit)


def one_bit_of_a_checksum(scene: Scene) -> None:
    """Flip a bit of the first array's checksum; one of its data would be found by the checksum or by zlib."""
    directory = (scene.root / LOSSES).read_bytes().index(b"PK\x01\x02")
    scene.flip(LOSSES, 8 * (directory + 16))


def one_array(scene: Scene) -> None:
    """An .npy file under the name of the losses."""
    with open(scene.run / "losses.npz", "wb") as handle:
        np.save(handle, [1.0])


def array(name: str, values: np.ndarray) -> Break:
    """Another array in a file of the index, of the size that meta.json has."""

    def write(scene: Scene) -> None:
        np.save(scene.data / name, values)
        size = (scene.data / name).stat().st_size
        scene.edit_json(f"{DATA}/meta.json", lambda meta: meta["files"][name].update(bytes=size))

    return write


def header_of(name: str, old: bytes, new: bytes) -> Break:
    """An array whose header says something else in as many bytes."""
    return lambda scene: scene.write(f"{DATA}/{name}", (scene.data / name).read_bytes().replace(old, new, 1))


def zeros(path: str) -> Break:
    return lambda scene: scene.write(path, bytes((scene.root / path).stat().st_size))


def state(breaks: Callable[[Scene, str], object]) -> Break:
    """A damaged resume state in the middle of a training."""
    return lambda scene: breaks(scene, scene.half_trained().relative_to(scene.root).as_posix())


def raw_header(text: bytes) -> Break:
    """A certificate whose header is this text, under a checksum that is right."""

    def write(scene: Scene) -> None:
        import hashlib

        data = (scene.run / "certificate.bin").read_bytes()
        (length,) = struct.unpack(">I", data[10:14])
        body = data[:10] + struct.pack(">I", len(text)) + text + data[14 + length : -32]
        scene.write(CERTIFICATE, body + hashlib.sha256(body).digest())

    return write


CERTIFICATE, LOSSES, BOUNDS = f"{FOLDER}/certificate.bin", f"{FOLDER}/losses.npz", f"{FOLDER}/bounds.json"
CHECKPOINT = f"{FOLDER}/best_ckpt.pt"
OTHER = ("train", "--config", CONFIG, *RUN_OPTIONS[:-1], "2", "--out", FOLDER)
NEW = (*TRAIN[:-1], "results/runs/new")
NEW_WITH = ("train", "--config", CONFIG, "--budget", "40", "--seed", "1", "--out", "results/runs/new", "--allocation")
DEEP = "[" * 100_000 + "]" * 100_000
NUMBER = "1" * 5_000


def nothing(scene: Scene) -> None:
    """The command alone is wrong."""


SETTINGS_FILE = [
    Fault("settings", "no such file", STATUS, lambda s: s.delete(CONFIG)),
    Fault("settings", "a folder in its place", STATUS, lambda s: s.folder_instead(CONFIG)),
    Fault("settings", "empty", STATUS, lambda s: s.write(CONFIG, "")),
    Fault("settings", "a list", STATUS, lambda s: s.write(CONFIG, "- 1\n")),
    Fault("settings", "not UTF-8", STATUS, lambda s: s.write(CONFIG, b"grid: \xff\n")),
    Fault("settings", "a NUL in it", STATUS, lambda s: s.append(CONFIG, "a: \0\n")),
    Fault("settings", "not YAML", STATUS, lambda s: s.append(CONFIG, "a: [\n")),
    Fault("settings", "a section twice", STATUS, lambda s: s.append(CONFIG, "grid: {}\n")),
    Fault("settings", "a key twice in braces", STATUS, lambda s: s.append(CONFIG, "x: {a: 1, a: 2}\n")),
    Fault("settings", "aliases of aliases", STATUS, lambda s: s.append(CONFIG, aliases())),
    Fault("settings", "an alias inside itself", STATUS, lambda s: s.append(CONFIG, "x: &x [*x]\n")),
    Fault("settings", "100,000 brackets", STATUS, lambda s: s.append(CONFIG, f"x: {DEEP}\n")),
    Fault("settings", "a number of 5,000 digits", STATUS, lambda s: s.append(CONFIG, f"x: {NUMBER}\n")),
    Fault("settings", "a tag that does not fit", STATUS, lambda s: s.append(CONFIG, "x: !!bool maybe\n")),
    Fault("settings", "a tag that runs code", STATUS, lambda s: s.append(CONFIG, "x: !!python/name:os.system\n")),
    Fault("settings", "an unknown key", STATUS, settings(training={"learning_rat": 0.1})),
    Fault("settings", "a huge wrong value", STATUS, settings(training={"steps": "1" * 10_000})),
    Fault("settings", "a share of B with a space", STATUS, settings(grid={"allocations": ["fixed- 0.2"]})),
    Fault("settings", "a share of B with a line break", STATUS, settings(grid={"allocations": ["fixed-0.2\n"]})),
    Fault("settings", "a share of B in other digits", STATUS, settings(grid={"allocations": ["fixed-0.२"]})),
    Fault(
        "settings", "a smoothing that only guesses", STATUS, settings(scoring={"smoothing": [f"token({1 - 1e-16})"]})
    ),
    Fault("settings", "a first step of 1e30", STATUS, entropy(relative_step=1e30)),
    Fault("settings", "a first step of 1e-30", STATUS, entropy(relative_step=1e-30)),
    Fault("settings", "a step that leaps", STATUS, entropy(step_learning_rate=1e10)),
    Fault("settings", "a rate phase that never starts", STATUS, entropy(fraction=0.01)),
    Fault("settings", "a rate phase that never rounds", STATUS, entropy(fraction=0.1, noise_fraction=0.99)),
    Fault("settings", "more val documents than there are", STATUS, settings(scoring={"val_documents": 1_000_000})),
]
CORPUS = [
    Fault("corpus", "a line of 100,000 brackets", PREPARE, corpus('{"text": ' + DEEP + "}\n")),
    Fault("corpus", "a number of 5,000 digits", PREPARE, corpus('{"text": "a", "n": ' + NUMBER + "}\n")),
    Fault("corpus", "not JSON", PREPARE, corpus('{"text": "a"\n')),
    Fault("corpus", "not UTF-8", PREPARE, corpus(b'{"text": "\xff"}\n')),
    Fault("corpus", "no such field", PREPARE, corpus('{"txt": "a"}\n')),
    Fault("corpus", "too few documents", PREPARE, corpus('{"text": "a document"}\n')),
]
DATASET = [
    Fault("data", "not prepared", NEW, lambda s: s.delete(f"{DATA}/meta.json")),
    Fault("data", "train.bin all zeros, before a training", NEW, zeros(f"{DATA}/train.bin")),
    Fault("data", "one bit of train.bin, before a training", NEW, lambda s: s.flip(f"{DATA}/train.bin", 12345)),
    Fault("data", "train.bin all zeros, before scoring", SCORE, zeros(f"{DATA}/train.bin")),
    Fault("data", "one bit of test.bin, before scoring", SCORE, lambda s: s.flip(f"{DATA}/test.bin", 99)),
    Fault("data", "one bit of val.bin, in a verification", VERIFY, lambda s: s.flip(f"{DATA}/val.bin", 99)),
    Fault("data", "train.bin cut short", NEW, lambda s: s.cut(f"{DATA}/train.bin")),
    Fault("data", "a folder in place of val.bin", NEW, lambda s: s.folder_instead(f"{DATA}/val.bin")),
    Fault("data", "meta.json cut short", NEW, lambda s: s.cut(f"{DATA}/meta.json")),
    Fault("data", "meta.json a list", NEW, lambda s: s.write(f"{DATA}/meta.json", "[]")),
    Fault("data", "meta.json nested too deep", NEW, lambda s: s.write(f"{DATA}/meta.json", DEEP)),
    Fault("data", "meta.json without splits", NEW, meta(lambda m: m.pop("splits"))),
    Fault(
        "data", "a text where meta.json has a number", NEW, meta(lambda m: m["splits"]["train"].update(tokens="many"))
    ),
    Fault("data", "meta.json without a file", NEW, meta(lambda m: m["files"].pop("val.bin"))),
    Fault("data", "an index of zeros", NEW, zeros(f"{DATA}/doc_lengths.npy")),
    Fault("data", "an index of objects", NEW, header_of("eot_indices.npy", b"'<i8'", b"'|O' ")),
    Fault("data", "an index that promises more", NEW, header_of("eot_indices.npy", b"(240,)", b"(999,)")),
    Fault("data", "an index header that is no header", NEW, header_of("doc_lengths.npy", b"{'descr'", b"{{{{{{{{")),
    Fault("data", "an index of another shape", NEW, array("doc_lengths.npy", np.ones((2, 120), dtype=np.int64))),
    Fault("data", "an index of floats", NEW, array("eot_indices.npy", np.ones(240))),
]  # fmt: skip
TRAINING = [
    Fault("training", "another run in the folder", OTHER, nothing),
    Fault("training", "other settings in the folder", TRAIN, settings(training={"learning_rate": 0.123})),
    Fault("training", "a budget beyond the parameters", (*NEW, "--budget", "1000000"), nothing),
    Fault("training", "a share of B with a line break", (*NEW_WITH, "fixed-0.2\n"), nothing),
    Fault("training", "resume state, one bit", TRAIN, state(lambda s, path: s.flip(path, 8 * 700))),
    Fault("training", "resume state cut short", TRAIN, state(lambda s, path: s.cut(path))),
    Fault("training", "resume state empty", TRAIN, state(lambda s, path: s.write(path, b""))),
    Fault("training", "a file where the folder is to be", (*NEW[:-1], CONFIG), nothing),
    Fault("training", "files cannot grow", NEW, nothing, small_files),
    Fault("training", "the disk is full", NEW, nothing, full_disk),
]
SCORING = [
    Fault("scoring", "not trained", SCORE, lambda s: s.delete(CHECKPOINT)),
    Fault("scoring", "checkpoint, one bit", SCORE, lambda s: s.flip(CHECKPOINT, 8 * 900)),
    Fault("scoring", "checkpoint cut short", SCORE, lambda s: s.cut(CHECKPOINT)),
    Fault("scoring", "checkpoint empty", SCORE, lambda s: s.write(CHECKPOINT, b"")),
    Fault("scoring", "checkpoint is text", SCORE, lambda s: s.write(CHECKPOINT, "hello " * 50)),
    Fault("scoring", "a folder in place of the checkpoint", SCORE, lambda s: s.folder_instead(CHECKPOINT)),
    Fault("scoring", "settings of another training", SCORE, settings(training={"learning_rate": 0.123})),
    Fault("scoring", "the disk is full", SCORE, nothing, full_disk),
]
BOUNDING = [
    Fault("bound", "certificate, one bit", BOUND, lambda s: s.flip(CERTIFICATE, 8 * 300)),
    Fault("bound", "certificate cut short", BOUND, lambda s: s.cut(CERTIFICATE)),
    Fault("bound", "certificate empty", BOUND, lambda s: s.write(CERTIFICATE, b"")),
    Fault("bound", "certificate is text", BOUND, lambda s: s.write(CERTIFICATE, "hello " * 50)),
    Fault("bound", "certificate missing", BOUND, lambda s: s.delete(CERTIFICATE)),
    Fault("bound", "a header that is no JSON", BOUND, raw_header(b"{")),
    Fault("bound", "a header of 100,000 brackets", BOUND, raw_header(DEEP.encode())),
    Fault("bound", "a header with a key twice", BOUND, raw_header(b'{"run":1,"run":2}')),
    Fault("bound", "a header that is a list", BOUND, raw_header(b"[]")),
    Fault("bound", "a header without n_units", BOUND, lambda s: s.reseal(lambda h: h.pop("n_units"))),
    Fault("bound", "a header with a text for a number", BOUND, lambda s: s.reseal(lambda h: h.update(n_units="many"))),
    Fault("bound", "a header without its settings", BOUND, lambda s: s.reseal(lambda h: h.update(settings={}))),
    Fault("bound", "losses missing", BOUND, lambda s: s.delete(LOSSES)),
    Fault("bound", "losses empty", BOUND, lambda s: s.write(LOSSES, b"")),
    Fault("bound", "losses cut short", BOUND, lambda s: s.cut(LOSSES)),
    Fault("bound", "losses, one bit", BOUND, one_bit_of_a_checksum),
    Fault("bound", "losses are text", BOUND, lambda s: s.write(LOSSES, "hello")),
    Fault("bound", "one array in place of the losses", BOUND, one_array),
    Fault("bound", "losses lack an array", BOUND, losses(lambda a: a.pop("topk_errors"))),
    Fault("bound", "losses without provenance", BOUND, losses(lambda a: a.pop("provenance"))),
    Fault("bound", "provenance that is no JSON", BOUND, losses(lambda a: a.update(provenance="{"))),
    Fault("bound", "provenance without its keys", BOUND, losses(lambda a: a.update(provenance="{}"))),
    Fault("bound", "fewer losses than documents", BOUND, losses(lambda a: a.update(losses_bits=a["losses_bits"][:7]))),
    Fault(
        "bound",
        "losses in a square",
        BOUND,
        losses(lambda a: a.update(val_losses_bits=a["val_losses_bits"].reshape(4, 5))),
    ),
    Fault("bound", "losses of text", BOUND, losses(lambda a: a.update(losses_bits=np.array(["x"] * 50)))),
    Fault("bound", "a loss that is infinite", BOUND, losses(lambda a: a["losses_bits"].fill(np.inf))),
    Fault("bound", "a loss that cannot be", BOUND, losses(lambda a: a["losses_bits"].fill(1e9))),
    Fault(
        "bound", "a new certificate and old losses", BOUND,
        lambda s: s.reseal(lambda h: h["environment"].update(torch="9.9")),
    ),
    Fault("bound", "the disk is full", BOUND, nothing, full_disk),
]  # fmt: skip
VERIFYING = [
    Fault("verify", "bounds.json missing", VERIFY, lambda s: s.delete(BOUNDS)),
    Fault("verify", "bounds.json cut short", VERIFY, lambda s: s.cut_lines(BOUNDS)),
    Fault("verify", "bounds.json a list", VERIFY, lambda s: s.write(BOUNDS, "[]")),
    Fault("verify", "bounds.json nested too deep", VERIFY, lambda s: s.write(BOUNDS, DEEP)),
    Fault("verify", "a number of 5,000 digits", VERIFY, lambda s: s.write(BOUNDS, f'{{"bound_value": {NUMBER}}}')),
    Fault("verify", "losses, one bit", VERIFY, one_bit_of_a_checksum),
    Fault("verify", "certificate, one bit", VERIFY, lambda s: s.flip(CERTIFICATE, 8 * 300)),
]

MATRIX = [*SETTINGS_FILE, *CORPUS, *DATASET, *TRAINING, *SCORING, *BOUNDING, *VERIFYING]


def message(fault: Fault, scene: Scene) -> str:
    """Break the scene, run the command, and return its line.

    AssertionError unless that is one line with exit status 2, without a traceback, and no file changed.
    """
    fault.breaks(scene)
    before = scene.snapshot()
    if fault.during is None:
        status, _, errors = scene.call(*fault.command)
    else:
        with fault.during():
            status, _, errors = scene.call(*fault.command)
    # A stage that got as far has said what it is, and a training how far it came.
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(("$ ", "step ", "resuming"))]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), (status, errors[-2000:])
    after = scene.snapshot()
    # That a stage was started is on record even where it failed.
    lost = [path for path, digest in before.items() if after.get(path) != digest and Path(path).name != STARTS_NAME]
    assert not lost, lost
    return scene.relative(lines[0].removeprefix("error: "))
