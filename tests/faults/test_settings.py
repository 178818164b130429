"""Settings changed at random, and those whose trainings used to break."""

import copy
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from conftest import TINY, demo_values, merged
from hypothesis import HealthCheck, given, settings

from faults.scene import Scene
from sublora import config
from sublora.bounds import inequalities
from sublora.config.loading import read_yaml
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.errors import UserError

VALUES = merged(demo_values(), TINY)
PLACES = [(section, key) for section, keys in VALUES.items() for key in keys]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["fixed-", "fixed-1e-400", "token(1e-400)", "document(99999999999)", "random", "../..", "\x1b[2J"]),
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), ANYTHING), min_size=1, max_size=3))
def test_settings_changed_at_random_are_taken_or_refused_in_one_line(
    changes: list[tuple[tuple[str, str], Any]],
) -> None:
    values = copy.deepcopy(VALUES)
    for (section, key), value in changes:
        values[section][key] = value
    try:
        taken = config.parse_settings(values, source="config.yaml")
    except UserError as error:
        assert str(error).startswith("config.yaml: ") and len(str(error)) < 4000
    else:
        assert config.parse_settings(taken.model_dump(mode="json"), source="config.yaml") == taken


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from("ab:-[]{}&*!#\"'|> \n1"), max_size=40).map("".join)))
def test_any_text_is_yaml_or_a_value_error(text: str) -> None:
    """And where the plain loader takes a text as well, both read the same."""
    try:
        values = read_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert repr(values) == repr(yaml.safe_load(text))


def test_one_coordinate_trains_for_the_message(scene: Scene) -> None:
    """With a single number there is no spread of w from which the first step could be taken."""
    scene.settings(message={"quantizer": "entropy"}, grid={"budgets": [1]}, rate_phase={"val_documents": 20})
    values = config.load_settings(scene.root / "config/config.yaml")
    out = scene.root / "results/runs/d1_uniform_seed1"
    train_run(values, config.RunSpec(budget=1, allocation="uniform", seed=1), root=scene.root, out=out)
    assert score_run(out, root=scene.root).exists()


@pytest.mark.parametrize("phase", [{"relative_step": 1e-6}, {"relative_step": 1e3}, {"step_learning_rate": 10.0}])
def test_steps_at_the_ends_of_their_ranges_train_or_end_in_one_line(scene: Scene, phase: dict[str, float]) -> None:
    scene.settings(message={"quantizer": "entropy"}, rate_phase={"val_documents": 20} | phase)
    arguments = ("--budget", "40", "--allocation", "uniform", "--seed", "1", "--out", "results/runs/new")
    status, _, errors = scene.call("train", "--config", "config/config.yaml", *arguments)
    assert "Traceback" not in errors
    if status:
        assert status == 2 and "no message can hold w as the rate phase left it" in errors.splitlines()[-1]


@pytest.mark.parametrize("n", [float("inf"), float("nan"), 0, -1, 2.5, True, "3", None])
@pytest.mark.parametrize("inequality", inequalities.FULL_SAMPLE + inequalities.SUBSAMPLED)
def test_an_impossible_n_is_a_value_error(inequality: Callable[..., float], n: object) -> None:
    draw = {"delta_sample": 0.01} if inequality in inequalities.SUBSAMPLED else {}
    with pytest.raises(ValueError, match="n must be a positive whole number"):
        inequality([0.5, 0.6], lower=0.0, upper=1.0, code_bits=10.0, n=n, delta=0.05, **draw)


@pytest.mark.parametrize("k", [float("inf"), float("nan"), 0, 65, True, 1.5, "1"])
def test_an_impossible_mixture_is_a_value_error(k: Any) -> None:
    from sublora.bounds.smoothing import DocumentMixture

    with pytest.raises(ValueError, match="k must be a whole number from 1 to 64"):
        DocumentMixture(k)


@pytest.mark.parametrize(
    "share", [" 0.2", "0.2 ", "0.2\n", "+0.2", "0_1.5", "0.२", "1e-400", "inf", "nan", "0.0", "1", ""]
)
def test_a_share_is_written_in_plain_digits(share: str) -> None:
    with pytest.raises(UserError, match="is not one of uniform, learned, .*fixed-<ratio>"):
        config.parse_run(40, f"fixed-{share}", 1)


@pytest.mark.parametrize("share", ["0.2", ".5", "0.25", "1e-3", "2.5e-1"])
def test_plain_shares_are_taken(share: str) -> None:
    assert config.parse_run(40, f"fixed-{share}", 1).ratio == float(share)
