"""Shared fixtures: small settings derived from the demo's."""

import copy
import fcntl
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import yaml

from sublora import config

if TYPE_CHECKING:
    from sublora.training.run import Run

# One thread in each process, set before numpy and torch are imported: on arrays this small a second one only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def lacking(reason: str) -> NoReturn:
    """Skip a test for which this machine lacks something; fail it with SUBLORA_TEST_EVERYTHING=1, as .ci/run has it."""
    if os.environ.get("SUBLORA_TEST_EVERYTHING"):
        pytest.fail(reason)
    pytest.skip(reason)


TINY = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "init_std": 0.05},
    "lora": {"rank": 2, "alpha": 8.0},
    "grid": {"budgets": [40, 60], "seeds": [1, 2]},
    "training": {
        "tokens_per_step": 128,
        "micro_batch_sequences": 4,
        "steps": 20,
        "eval_interval_steps": 5,
        "eval_sequences": 16,
        "save_interval_steps": 4,
    },
    "gating": {"soft_fraction": 0.8, "trace_interval_steps": 5},
    "message": {"quantizer": "plain", "extra_bits": 0.0},
    "scoring": {"sliding_window": 10, "sources": None, "documents": 50, "val_documents": 20, "test_documents": 20},
    "data": {
        "name": "markov",
        "corpus": {
            "kind": "markov",
            "symbols": 6,
            "concentration": 1.0,
            "documents": 300,
            "min_length": 60,
            "max_length": 100,
            "seed": 3,
        },
        "min_characters": 1,
        "max_characters": None,
        "min_tokens": 1,
        "val_documents": 30,
        "test_documents": 30,
        "workers": 1,
        "near_duplicates": False,
    },
}


TRAINED = {
    "kind": "trained",
    "name": "apart",
    "corpus": {"kind": "docstrings", "packages": ["numpy"]},
    "min_characters": 1,
    "val_documents": 5,
    "seed": 1,
    "steps": 10,
    "tokens_per_step": 64,
    "micro_batch_sequences": 2,
    "learning_rate": 0.01,
    "final_learning_rate": 0.001,
    "warmup_fraction": 0.1,
    "betas": [0.9, 0.95],
    "epsilon": 1.0e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
    "eval_interval_steps": 5,
    "eval_sequences": 4,
    "log_interval_steps": 1,
    "save_interval_steps": 5,
    "threads": 1,
}
PRETRAINED = {
    "kind": "pretrained",
    "path": "openai-community/gpt2",
    "revision": None,
    "independence": {"training_cutoff": "2017", "document_dates": "2024", "how_checked": "by their dates"},
}


def demo_values() -> dict:
    """The demo's settings as plain values, every key of them and free to be changed, on a random base."""
    demo = copy.deepcopy(_demo_values())
    demo["scoring"]["anchor"] = "guessing"  # for tests that put another base in
    del demo["subspace"]["scale"]  # which only a trained base has
    return demo | {"base": {"kind": "random"}}


@functools.cache
def _demo_values() -> dict:
    return config.load_settings(REPOSITORY / "demo/config/config.yaml").model_dump(mode="json")


def merged(values: dict, changes: dict) -> dict:
    result = copy.deepcopy(values)
    for section, keys in changes.items():
        result[section] = result.get(section, {}) | keys
    return result


def write_settings(root: Path, changes: dict | None = None) -> Path:
    """A settings file root/config/config.yaml: the tiny one with changes."""
    path = root / "config" / "config.yaml"
    path.parent.mkdir(exist_ok=True)
    values = merged(merged(demo_values(), TINY), changes or {})
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def build_on(root: Path, settings: config.Settings, spec: config.RunSpec) -> "Run":
    """The run at its start, on the data below `root` and on the CPU."""
    import torch

    from sublora.data.base_and_target import open_target
    from sublora.runs.build import build_run

    return build_run(settings.for_run(spec), spec, open_target(settings, root), root, torch.device("cpu"))


@pytest.fixture
def tiny_settings() -> config.Settings:
    """A network of two layers, sixteen wide, with byte tokens."""
    return config.parse_settings(merged(demo_values(), TINY), source="tiny")


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return a function of a name and a maker: the folder that the maker fills, once for all workers of a test run.

    Tests read such a folder or copy it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with open(shared / f"{name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_root(made_once: MadeOnce) -> Path:
    """A folder with the tiny settings in config/ and their prepared data; tests do not write into it."""

    def make(root: Path) -> None:
        from sublora.data.prepare import prepare_dataset

        root.mkdir()
        prepare_dataset(config.load_settings(write_settings(root)).data, root)

    return made_once("tiny", make)


@pytest.fixture(scope="session")
def honest_root(made_once: MadeOnce, tiny_root: Path) -> Path:
    """Two finished runs, whole and honest, for tests of what provers can do; tests copy it."""
    from attacks import make_honest_runs

    return made_once("honest", lambda root: make_honest_runs(tiny_root, root))
