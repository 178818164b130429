"""The demo pays for the settings that were tried on its documents."""

import math

import pandas as pd
from conftest import REPOSITORY

from sublora.config import load_settings

TRIED_BEFORE_THE_LOG = 5
"""Settings tried on an earlier set of functions (docs/studies/demo.md)."""


def test_extra_bits_pay_for_every_setting_tried():
    tried = pd.read_csv(REPOSITORY / "demo/settings_tried.csv")
    assert list(tried["number"]) == list(range(1, len(tried) + 1))
    settings = load_settings(REPOSITORY / "demo/config/config.yaml")
    assert settings.message.extra_bits >= math.log2(len(tried) + TRIED_BEFORE_THE_LOG)


def test_the_demo_prepares_as_many_test_documents_as_it_scores():
    """A held-out bound of the same number of documents stands beside every bound."""
    for name in ("config.yaml", "random_base.yaml"):
        settings = load_settings(REPOSITORY / "demo/config" / name)
        assert settings.data.test_documents >= settings.scoring.test_documents >= settings.scoring.documents


def test_both_settings_files_of_the_demo_describe_the_same_documents():
    first, second = (load_settings(REPOSITORY / "demo/config" / name) for name in ("config.yaml", "random_base.yaml"))
    assert first.data == second.data


def test_the_four_ways_are_the_demo_but_for_what_is_trained():
    """The same documents and base; beside the grid only learning rates and what a report would need."""
    demo, four = (
        load_settings(REPOSITORY / "demo/config" / name).model_dump() for name in ("config.yaml", "four_ways.yaml")
    )
    differing = {f"{s}.{key}" for s, keys in demo.items() for key, value in keys.items() if four[s].get(key) != value}
    assert differing == {
        *("grid.budgets", "grid.allocations", "grid.seeds", "grid.trained"),
        *("training.learning_rates", "data.near_duplicates", "scoring.sources"),
        # The study is of direct bounds, with the training and the draws that the demo had before it was anchored.
        *("scoring.anchor", "scoring.anchor_k0", "scoring.base_documents", "scoring.base_sources"),
        *("scoring.documents", "scoring.test_documents", "lora.rank", "rate_phase.rate_factor"),
        *(f"training.{key}" for key in ("steps", "learning_rate", "eval_interval_steps", "save_interval_steps")),
        *("bound.delta_base", "bound.delta_base_sample", "bound.delta_excess_sample"),
        *("subspace.scale", "message.extra_bits"),
    }
    runs = load_settings(REPOSITORY / "demo/config/four_ways.yaml").grid.runs()
    assert len({run.trained for run in runs}) == 4 and len(runs) == 8
