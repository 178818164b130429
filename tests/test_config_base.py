"""Settings of the base: its kinds, what base and target must not share, and which stages its keys reach."""

import datetime

import pytest
import yaml
from conftest import PRETRAINED, TINY, TRAINED, demo_values, merged

from sublora import config
from sublora.config.corpus import AnyCorpus, MarkovCorpus
from sublora.system.errors import UserError

FOLDER = {"kind": "folder", "path": "texts", "text_field": "text", "unit_field": None}
TEXT = {"text_field": "text", "unit_field": None}
HUB = {"kind": "huggingface", "dataset": "owner/set", "revision": "main", "split": "train"} | TEXT
MARKOV = TINY["data"]["corpus"]


def parsed(base: dict | str, **sections: dict) -> config.Settings:
    values = merged(merged(demo_values(), TINY), sections)
    return config.parse_settings(values | {"base": base}, source="x.yaml")


def complaint(base: dict | str, **sections: dict) -> str:
    with pytest.raises(UserError) as caught:
        parsed(base, **sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def docstrings(*packages: str) -> dict:
    return {"kind": "docstrings", "packages": list(packages)}


def test_every_kind_is_read():
    assert isinstance(parsed({"kind": "random"}).base, config.RandomBase)
    assert isinstance(parsed(TRAINED).base, config.TrainedBase)
    assert isinstance(parsed(PRETRAINED).base, config.PretrainedBase)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"kind": "random", "seed": 1}, "unknown key 'base.seed'"),
        (TRAINED | {"weight_decy": 0.1}, "unknown key 'base.weight_decy'; did you mean 'base.weight_decay'?"),
        (TRAINED | {"corpus": FOLDER | {"pth": "x"}}, "'base.corpus.pth'; did you mean 'base.corpus.path'?"),
        (TRAINED | {"tokens_per_step": 65}, "base.tokens_per_step 65 is not a multiple of model.context_length x"),
        (TRAINED | {"name": "a/b"}, "base.name"),
        (TRAINED | {"corpus": {"kind": "folders"}}, "base.corpus.kind: expected one of"),
        ({"kind": "trainde"}, "base.kind: expected one of pretrained, random, trained, found 'trainde'"),
        ({"path": "gpt2"}, "key 'base.kind' is missing"),
        ("random", "base: expected keys with values, found 'random'"),
        ({"kind": "pretrained", "path": "x", "revision": None}, "key 'base.independence' is missing"),
    ],
)
def test_mistakes_are_named(base, expected):
    assert expected in complaint(base)


@pytest.mark.parametrize("key", list(PRETRAINED["independence"]))
@pytest.mark.parametrize("text", ["", "  \n", None])
def test_what_makes_a_pretrained_base_independent_must_be_said(key, text):
    independence = PRETRAINED["independence"] | {key: text}
    assert f"base.independence.{key}: " in complaint(PRETRAINED | {"independence": independence})


def test_a_date_needs_no_quotes(tmp_path):
    """YAML makes a date of it, Snakemake's reader as well."""
    independence = PRETRAINED["independence"] | {"training_cutoff": "2023-06-01"}
    values = merged(demo_values(), TINY) | {"base": PRETRAINED | {"independence": independence}}
    text = yaml.safe_dump(values).replace("'2023-06-01'", "2023-06-01")
    (tmp_path / "config.yaml").write_text(text)
    read_by_snakemake = yaml.safe_load(text)
    assert isinstance(read_by_snakemake["base"]["independence"]["training_cutoff"], datetime.date)
    ours = config.load_settings(tmp_path / "config.yaml")
    assert ours == config.parse_settings(read_by_snakemake, "a module") == config.parse_settings(values, "x.yaml")
    assert config.with_text_dates(read_by_snakemake) == values


@pytest.mark.parametrize(
    ("base", "data", "shared"),
    [
        (docstrings("numpy", "scipy"), docstrings("stdlib", "scipy"), "the packages scipy"),
        (docstrings("stdlib"), docstrings("stdlib", "torch"), "the packages stdlib"),
        (docstrings("json"), docstrings("stdlib"), "the packages json"),
        (docstrings("stdlib"), docstrings("json"), "the packages json"),
        (FOLDER, FOLDER | {"text_field": "body"}, "the folder texts"),
        (FOLDER, FOLDER | {"path": "./texts/new"}, "the folder texts/new"),
        (HUB, HUB | {"revision": "refs/convert/parquet"}, "the split train of owner/set"),
        (MARKOV, MARKOV, "all of their documents"),
    ],
)
def test_base_and_target_share_no_source(base, data, shared):
    found = complaint(TRAINED | {"corpus": base}, data={"corpus": data})
    assert f"base.corpus and data.corpus share {shared};" in found


def test_a_new_kind_of_corpus_must_say_what_overlaps_with_it(monkeypatch):
    """Also with kinds that were there before it, and whether it is the base's or the data's."""
    with pytest.raises(TypeError, match="overlap"):
        type("Silent", (AnyCorpus,), {"__module__": __name__})()
    monkeypatch.setattr(MarkovCorpus, "overlap", lambda self, other: "the folder's letters")
    for base, data in ((MARKOV, FOLDER), (FOLDER, MARKOV)):
        found = complaint(TRAINED | {"corpus": base}, data={"corpus": data})
        assert "base.corpus and data.corpus share the folder's letters;" in found


@pytest.mark.parametrize(
    ("base", "data"),
    [
        (docstrings("numpy"), docstrings("stdlib")),
        (docstrings("json"), docstrings("email")),
        (FOLDER, FOLDER | {"path": "texts2"}),
        (HUB, HUB | {"split": "test"}),
        (HUB, FOLDER),
        (MARKOV, MARKOV | {"seed": 4}),
    ],
)
def test_sources_that_are_apart_are_admitted(base, data):
    parsed(TRAINED | {"corpus": base}, data={"corpus": data})


def test_base_and_target_have_folders_of_their_own():
    assert "base.name and data.name are both 'markov'" in complaint(TRAINED | {"name": "markov"})


def test_a_markov_base_needs_bytes():
    data = {"corpus": FOLDER, "tokenizer": "gpt2"}
    assert "base: a markov corpus needs tokenizer 'bytes'" in complaint(TRAINED | {"corpus": MARKOV}, data=data)


@pytest.mark.parametrize(
    ("base", "changes", "stages"),
    [
        (TRAINED, {"name": "other"}, {"data", "base"}),
        (TRAINED, {"corpus": docstrings("scipy")}, {"data", "base"}),
        (TRAINED, {"min_characters": 2}, {"data", "base"}),
        (TRAINED, {"val_documents": 6}, {"data", "base"}),
        (TRAINED, {"seed": 2}, {"base"}),
        (TRAINED, {"steps": 11}, {"base"}),
        (TRAINED, {"threads": 2}, {"base"}),
        (TRAINED, {"log_interval_steps": 2}, set()),
        (TRAINED, {"save_interval_steps": 2}, set()),
        (PRETRAINED, {"path": "other"}, {"base", "train"}),
        (PRETRAINED, {"revision": "main"}, {"base", "train"}),
        (PRETRAINED, {"independence": PRETRAINED["independence"] | {"how_checked": "x"}}, {"score", "bound"}),
    ],
)
def test_a_change_of_the_base_reaches_its_stages_alone(base, changes, stages):
    assert reached(parsed(base), parsed(base | changes)) == stages


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"model": {"n_layer": 3}}, {"base", "train", "yardsticks"}),
        ({"compute": {"dtype": "bfloat16"}}, {"base", "train"}),
        ({"compute": {"threads": 2}}, {"train", "yardsticks"}),
        ({"compute": {"gpus_per_training": 2}}, {"train"}),
        ({"training": {"steps": 21}}, {"train"}),
    ],
)
def test_what_the_base_shares_with_the_runs_reaches_both(changes, stages):
    assert reached(parsed(TRAINED), parsed(TRAINED, **changes)) == stages


@pytest.mark.parametrize("stage", ["train", "yardsticks"])
def test_the_kind_reaches_the_runs_and_the_numbers_of_a_trained_base_do_not(stage):
    assert config.stage_settings(parsed({"kind": "random"}), stage)["base"] == {"kind": "random"}
    assert config.stage_settings(parsed(TRAINED), stage)["base"] == {"kind": "trained"}


def reached(before: config.Settings, after: config.Settings) -> set[str]:
    return {s for s in config.STAGES if config.stage_settings(before, s) != config.stage_settings(after, s)}
