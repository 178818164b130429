"""Two tiny Markov corpora, a base trained on one of them for the other, and processes that train it and are killed."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged
from killing import in_child

from sublora import config
from sublora.data.prepare import prepare_all
from sublora.runs.base import make_base
from sublora.system import files
from sublora.system.errors import UserError
from sublora.system.names import BASE_FOLDER, BASE_JSON_NAME, BASE_WEIGHTS_NAME, METRICS_NAME

CONTEXT = TINY["model"]["context_length"]
VOCABULARY = 257
KILLED = -int(signal.SIGKILL)

TRAINED = {
    "kind": "trained",
    "name": "markovbase",
    "corpus": TINY["data"]["corpus"] | {"seed": 5},
    "min_characters": 1,
    "val_documents": 20,
    "seed": 7,
    "steps": 12,
    "tokens_per_step": 8 * CONTEXT,
    "micro_batch_sequences": 4,
    "learning_rate": 0.01,
    "final_learning_rate": 0.001,
    "warmup_fraction": 0.1,
    "betas": [0.9, 0.98],
    "epsilon": 1.0e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
    "eval_interval_steps": 4,
    "eval_sequences": 16,
    "log_interval_steps": 1,
    "save_interval_steps": 4,
    "threads": 1,
}
"""Twelve steps, a state saved after the 4th and the 8th."""

PRETRAINED = {
    "kind": "pretrained",
    "path": "pretrained",
    "revision": None,
    "independence": {"training_cutoff": "never", "document_dates": "drawn today", "how_checked": "random weights"},
}


def base_settings(base: dict, **sections: dict) -> config.Settings:
    """The tiny settings with this base, and with changes of other sections."""
    cpu = {
        "compute": {"device": "cpu", "threads": 1, "compile": False, "dtype": "float32"} | sections.pop("compute", {})
    }
    values = merged(merged(demo_values(), TINY), cpu)
    return config.parse_settings(merged(values, sections) | {"base": base}, source="tiny")


@functools.cache
def prepared_root(temporary: Path) -> Path:
    """A folder with the data of base and target, prepared once; no test writes into it."""
    root = temporary / "base-data"
    prepare_all(base_settings(TRAINED), root)
    return root


def root_of_its_own(prepared: Path, root: Path) -> Path:
    """A folder that shares the prepared data, for results."""
    root.mkdir(exist_ok=True)
    (root / "data").symlink_to(prepared / "data")
    return root


def base_bytes(folder: Path) -> tuple[bytes, bytes]:
    return (folder / BASE_JSON_NAME).read_bytes(), (folder / BASE_WEIGHTS_NAME).read_bytes()


def outcome(folder: Path) -> tuple[bytes, bytes, list[str]]:
    """All that a training leaves behind and that must not depend on interruptions; in the history all but seconds."""
    rows = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    assert rows[0].endswith(",seconds")
    return *base_bytes(folder), [row.rpartition(",")[0] for row in rows]


def base_folder(root: Path) -> Path:
    return root / BASE_FOLDER


def complaint(function: Callable[[], object]) -> str:
    """The one line with which `function` refuses."""
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def die_at(step: int, *, writing: str | None = None) -> Callable[[int], None]:
    """To be called before each step: SIGKILL at `step`, or from then on when a file of this suffix is all but there.

    No handler, no finally and no flush runs.
    """
    replace = os.replace

    def replace_or_die(source: Path, target: Path) -> None:
        if str(target).endswith(str(writing)):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def before_step(now: int) -> None:
        if now == step and writing is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if now == step:
            files.os.replace = replace_or_die

    return before_step


def start_in_child(
    settings: config.Settings, *, root: Path, out: Path, before_step: Callable[[int], None] | None = None
) -> int:
    """Make the base in a forked process; returns its id."""
    return in_child(lambda: make_base(settings, root=root, out=out, before_step=before_step))
