"""Settings: strictness, the texts of errors, and what a stage depends on."""

import math

import pytest
from conftest import REPOSITORY, TINY, demo_values, merged

from sublora import config
from sublora.config.loading import read_yaml
from sublora.config.section import Mark, ReachesThrough
from sublora.system.errors import UserError

CLASSIFY = REPOSITORY / "config/glue.yaml"
CONFIGS = sorted({*REPOSITORY.glob("config/*.yaml"), *REPOSITORY.glob("demo/config/*.yaml")} - {CLASSIFY})
GOLDEN = [REPOSITORY / "tests/golden/settings.yaml"]


def parsed(changes: dict) -> config.Settings:
    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="x.yaml")


@pytest.mark.parametrize(
    ("path", "budgets"),
    [
        ("config/config.yaml", (1000, 2000)),
        ("demo/config/config.yaml", (1000, 2000)),
        ("demo/config/random_base.yaml", (1000, 2000)),
    ],
)
def test_shipped_settings_hold_the_grid_of_thirty_runs(path, budgets):
    settings = config.load_settings(REPOSITORY / path)
    runs = settings.grid.runs()
    assert len(runs) == len({run.name for run in runs}) == 30
    assert runs[0].name == f"d{budgets[0]}_uniform_seed42" and runs[-1].name == f"d{budgets[1]}_learned_seed999"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"corpus": {"kind": "docstrings", "pakages": ["numpy"]}}}, "'data.corpus.pakages'; did you mean"),
        ({"grid": {"seeds": [1, 1]}}, "seeds holds a value twice"),
        ({"grid": {"seeds": []}}, "grid.seeds"),
        ({"data": {"corpus": {"kind": "markof"}}}, "kind: expected one of docstrings, folder, functions, hugg"),
        ({"lora": {"rank": "4"}}, "lora.rank: input should be a valid integer, found '4'"),
        ({"scoring": {"sliding_window": 17}}, "scoring.sliding_window 17 exceeds model.context_length 16"),
        ({"scoring": {"val_documents": 31}}, "scoring.val_documents 31 exceeds data.val_documents 30"),
        ({"bound": {"delta_sample": 0.2}}, "delta_sample 0.2 must be smaller than delta 0.05"),
        ({"scoring": {"smoothing": ["document(8)", "token(1)"]}}, "scoring.smoothing.1: "),
        ({"scoring": {"smoothing": ["document(8)", "token(1)"]}}, "token(1)"),
        ({"scoring": {"smoothing": ["document(65)"]}}, "document(65)"),
        ({"scoring": {"smoothing": [0.1]}}, "scoring.smoothing.0: input should be a valid string, found 0.1"),
        ({"scoring": {"smoothing": ["token(0.1)", "token(1e-1)"]}}, "a smoothing occurs twice: token(0.1), token(0.1)"),
        ({"scoring": {"documents": 0}}, "scoring.documents: expected all or a whole number of at least 1, found 0"),
        ({"scoring": {"documents": "every"}}, "expected all or a whole number of at least 1, found 'every'"),
        ({"rate_phase": {"smoothing": "documents(8)"}}, "documents(8)"),
        ({"training": {"learning_rate": math.nan}}, "training.learning_rate"),
    ],
)
def test_mistakes_are_named(changes, expected):
    with pytest.raises(UserError) as caught:
        parsed(changes)
    assert str(caught.value).startswith("x.yaml: ") and expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["bound.delta", "bound.delta_sample", "message.extra_bits", "data.unit", "data.min_tokens"]
)
def test_a_premise_has_no_default(key):
    values = demo_values()
    section, name = key.split(".")
    del values[section][name]
    with pytest.raises(UserError, match=rf"key '{key}' is missing"):
        config.parse_settings(values, source="x.yaml")


def test_the_independence_of_a_pretrained_base_has_no_default():
    assert config.PretrainedBase.model_fields["independence"].is_required()
    assert all(field.is_required() for field in config.Independence.model_fields.values())


@pytest.mark.parametrize("path", [*CONFIGS, *GOLDEN])
def test_a_file_of_all_keys_and_one_without_the_defaults_are_the_same_settings(path):
    settings = config.load_settings(path)
    whole = config.parse_settings(settings.model_dump(mode="json"), source="whole")
    short = config.parse_settings(settings.model_dump(mode="json", exclude_defaults=True), source="short")
    assert whole == short == settings
    for stage in config.STAGES:
        digests = {config.digest(config.stage_settings(each, stage)) for each in (settings, whole, short)}
        assert len(digests) == 1


@pytest.mark.parametrize("content", ["grid: [", "just text", ""])
def test_files_that_are_no_settings(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml: (not valid YAML|expected a mapping)"):
        config.load_settings(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seeds: [042]", "line 1: YAML reads 042 as 34; write the number without leading zeros or colons"),
        ("a: 1\nb: -010", "line 2: YAML reads -010 as -8"),
        ("time: 1:30", "line 1: YAML reads 1:30 as 90"),
        ("time: 1:30.5", "line 1: YAML reads 1:30.5 as 90.5"),
    ],
)
def test_numbers_that_yaml_reads_in_another_base_are_refused(tmp_path, line, expected):
    """[042] was the seed 34 without a word."""
    path = tmp_path / "config.yaml"
    path.write_text(line)
    with pytest.raises(UserError) as caught:
        config.load_settings(path)
    assert expected in str(caught.value)


def test_numbers_and_text_that_are_what_they_look_like_stay_so():
    text = "{a: 0, b: 42, c: 1_000, d: 0x1F, e: '042', f: 2024-06-30, g: 0.5, h: -7, i: 00, j: 2024-06-30 12:00:00}"
    assert read_yaml(text) == {
        **{"a": 0, "b": 42, "c": 1000, "d": 31, "e": "042", "f": "2024-06-30", "g": 0.5, "h": -7, "i": 0},
        "j": "2024-06-30 12:00:00",
    }


@pytest.mark.parametrize("name", ["fixed-0", "fixed-1", "fixed-1.5", "fixed-", "fixed-nan", "fixd-0.5", ""])
def test_no_such_allocation(name):
    with pytest.raises(UserError, match="is not one of uniform, learned, .*fixed-<ratio>"):
        config.parse_run(1000, name, 1)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"training": {"learning_rate": 0.123}}, {"train"}),
        ({"training": {"log_interval_steps": 7}}, set()),
        ({"training": {"save_interval_steps": 77}}, set()),
        ({"compute": {"scoring_batch_tokens": 77}}, set()),
        ({"compute": {"dtype": "bfloat16"}}, {"base", "train"}),
        ({"data": {"workers": 3}}, set()),
        ({"data": {"min_characters": 2}}, {"data", "train"}),
        ({"model": {"n_layer": 3}}, {"base", "train", "yardsticks"}),
        ({"message": {"quantizer": "entropy"}}, {"train", "score", "bound"}),
        ({"bound": {"delta": 0.123}}, {"score", "yardsticks", "bound"}),
        ({"tracking": {"tensorboard": True, "wandb": "online"}}, set()),
        ({"data": {"shuffle_seed": 3}}, {"data", "base", "train"}),
        ({"data": {"min_tokens": 2}}, {"data", "train", "score", "yardsticks", "bound"}),
        ({"message": {"extra_bits": 3.0}}, {"score", "bound"}),
        ({"scoring": {"documents": 49}}, {"score", "yardsticks", "bound"}),
        ({"grid": {"seeds": [1, 2, 3]}}, {"score", "bound"}),
    ],
)
def test_a_change_reaches_its_stages_alone(changes, stages):
    before, after = parsed({}), parsed(changes)
    reached = {s for s in config.STAGES if config.stage_settings(before, s) != config.stage_settings(after, s)}
    assert reached == stages


def test_a_smoothing_has_one_spelling():
    scoring = parsed({"scoring": {"smoothing": ["token(1.0e-2)", "document(8)"]}}).scoring
    assert scoring.smoothing == ("token(0.01)", "document(8)")


def test_all_documents_or_a_number_of_them():
    assert [parsed({"scoring": {"documents": value}}).scoring.documents for value in ("all", 7)] == ["all", 7]


def test_every_section_says_which_stages_it_reaches():
    for name, field in config.Settings.model_fields.items():
        assert any(isinstance(mark, Mark | ReachesThrough) for mark in field.metadata), name


def test_digest_ignores_the_order_of_keys_and_refuses_nan():
    assert config.digest({"a": 1, "b": [2.5]}) == config.digest({"b": [2.5], "a": 1}) != config.digest({"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        config.digest(math.nan)
