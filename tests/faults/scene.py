"""A small experiment whose run is finished, copies of it to break, and the command line on them."""

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from conftest import write_settings

from sublora import cli, config
from sublora.coding.certificate import read_certificate, write_certificate
from sublora.coding.payload import Payload
from sublora.data.prepare import prepare_dataset
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.files import sha256_of_file

RUN = config.RunSpec(budget=40, allocation="learned", seed=1)
FOLDER = f"results/runs/{RUN.name}"
CONFIG = "config/config.yaml"
DATA = "data/markov"
RUN_OPTIONS = ("--budget", "40", "--allocation", "learned", "--seed", "1")
TRAIN = ("train", "--config", CONFIG, *RUN_OPTIONS, "--out", FOLDER)
SCORE = ("score", FOLDER, "--config", CONFIG)
BOUND = ("bound", FOLDER)
VERIFY = ("verify", FOLDER, "--root", ".")
PREPARE = ("prepare", "--config", CONFIG)
STATUS = ("status", "--config", CONFIG)


class Scene:
    """A folder with config/, data/ and results/, whose files a test may break; commands run inside it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def build(cls, root: Path) -> "Scene":
        """Prepare, train, score and bound one tiny run; the state in the middle of its training is kept as well."""
        root.mkdir(parents=True)
        settings = config.load_settings(write_settings(root))
        prepare_dataset(settings.data, root)
        scene = cls(root)

        def interrupt(step: int) -> None:
            if step == 9:
                (state,) = (scene.run / "state").glob("*.pt")
                shutil.copy(state, root / "state.pt")
                (root / "state.name").write_text(state.name)

        train_run(settings, RUN, root=root, out=scene.run, before_step=interrupt)
        score_run(scene.run, root=root)
        bound_run(scene.run)
        return scene

    def copy(self, to: Path) -> "Scene":
        shutil.copytree(self.root, to)
        return Scene(to)

    @property
    def run(self) -> Path:
        return self.root / FOLDER

    @property
    def data(self) -> Path:
        return self.root / DATA

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of `sublora ...` in the scene's folder, run in this process."""
        before, out, err = sys.argv, io.StringIO(), io.StringIO()
        sys.argv, status = ["sublora", *arguments], 0
        with contextlib.chdir(self.root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                sys.argv = before
        return status, out.getvalue(), err.getvalue()

    def snapshot(self) -> dict[str, str]:
        """Hashes of all files that hold settings, data or results."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(self.root).as_posix(): sha256_of_file(path) for path in files}

    def relative(self, text: str) -> str:
        """A message without what other settings change: the folder, hashes, and places in files."""
        text = text.replace(f"{self.root.resolve()}/", "").replace(f"{self.root}/", "")
        text = re.sub(r"(?<![.\w])(?=\d*[a-f])[0-9a-f]{12,64}(\.\.\.)?", "HASH", text)
        return re.sub(r"\b(line|column|position|char|byte|ends at) \d+(?! of)", r"\1 N", text)

    # Ways to break things

    def settings(self, **sections: dict[str, object]) -> None:
        values = yaml.safe_load((self.root / CONFIG).read_text())
        for section, keys in sections.items():
            values[section] |= keys
        self.write(CONFIG, yaml.safe_dump(values))

    def write(self, path: str, content: str | bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    def append(self, path: str, content: str) -> None:
        self.write(path, (self.root / path).read_text() + content)

    def flip(self, path: str, bit: int) -> None:
        data = bytearray((self.root / path).read_bytes())
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        self.write(path, bytes(data))

    def cut(self, path: str, share: float = 0.5) -> None:
        data = (self.root / path).read_bytes()
        self.write(path, data[: int(len(data) * share)])

    def cut_lines(self, path: str) -> None:
        """The first half of a file, ending with a whole line."""
        lines = (self.root / path).read_text().splitlines(keepends=True)
        self.write(path, "".join(lines[: max(1, len(lines) // 2)]))

    def delete(self, path: str) -> None:
        (self.root / path).unlink()

    def folder_instead(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)
        (self.root / path).mkdir(parents=True)

    def edit_json(self, path: str, edit: Callable[[dict], object]) -> None:
        values = json.loads((self.root / path).read_text())
        edit(values)
        self.write(path, json.dumps(values))

    def edit_losses(self, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
        with np.load(self.run / "losses.npz") as archive:
            arrays = dict(archive)
        edit(arrays)
        np.savez_compressed(self.run / "losses.npz", **arrays)

    def reseal(self, edit: Callable[[dict], object]) -> None:
        """The certificate with an edited header, under a checksum that is right."""
        old = read_certificate(self.run / "certificate.bin")
        edit(old.header)
        write_certificate(self.run / "certificate.bin", old.header, Payload(old.payload_bytes, old.payload_bits, {}))

    def half_trained(self) -> Path:
        """Back to the middle of the training; its resume state."""
        for path in self.run.glob("*.*"):
            if path.is_file():
                path.unlink()
        state = self.run / "state" / (self.root / "state.name").read_text()
        state.parent.mkdir(exist_ok=True)
        shutil.copy(self.root / "state.pt", state)
        return state
