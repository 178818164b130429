"""Shared fixtures: small settings derived from the demo's."""

import copy
from pathlib import Path

import pytest
import yaml

from sublora import config

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16, "init_std": 0.05},
    "lora": {"rank": 2, "alpha": 8.0},
    "grid": {"budgets": [40, 60], "seeds": [1, 2]},
    "training": {"tokens_per_step": 128, "steps": 20, "eval_interval_steps": 5, "save_interval_steps": 4},
    "scoring": {"sliding_window": 10, "documents": 50, "val_documents": 20, "test_documents": 20},
    "data": {"val_documents": 30, "test_documents": 30},
}


def demo_values() -> dict:
    """The demo's settings as plain values, free to be changed."""
    return yaml.safe_load((REPOSITORY / "demo/config/config.yaml").read_text(encoding="utf-8"))


def merged(values: dict, changes: dict) -> dict:
    result = copy.deepcopy(values)
    for section, keys in changes.items():
        result[section] = result[section] | keys
    return result


@pytest.fixture
def tiny_settings() -> config.Settings:
    """A network of two layers, sixteen wide, with byte tokens."""
    return config.parse_settings(merged(demo_values(), TINY), source="tiny")
