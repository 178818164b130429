"""Sizes by name: the published ones have the published number of parameters, and a grid may sweep them."""

import shutil

import jsonschema
import pytest
from conftest import PRETRAINED, TINY, build_on, demo_values, merged, write_settings

from sublora import config
from sublora.config.documentation import schema_text
from sublora.config.settings import Settings
from sublora.models.spaces import model_parameters
from sublora.runs.bound import bound_run
from sublora.runs.message import decoder_header, read_message
from sublora.runs.networks import random_base
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.system.errors import UserError

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
SHAPE = ("n_layer", "n_head", "n_embd")


def values_of_size(size: str) -> dict:
    values = merged(demo_values(), TINY)
    model = {key: value for key, value in values["model"].items() if key not in SHAPE}
    return values | {"model": model | {"size": size}}


@pytest.mark.parametrize(("size", "parameters"), PUBLISHED.items())
def test_published_sizes_have_the_published_number_of_parameters(size, parameters):
    """As counted from the files of openai-community/gpt2 and its larger siblings: the tied head once, no adapters."""
    values = merged(values_of_size(size), {"model": {"context_length": 1024}, "data": {"tokenizer": "bytes"}})
    values["training"] |= {"tokens_per_step": 4096}
    model = config.parse_settings(values, source="test").model
    assert model_parameters(model, 50257) == parameters


def test_a_size_is_short_for_three_numbers():
    values = values_of_size("2x2x16")
    assert config.parse_settings(values, source="test") == config.parse_settings(
        merged(demo_values(), TINY), source="test"
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"size": "gpt3"},
            "size 'gpt3' is not one of gpt2, gpt2-medium, gpt2-large, gpt2-xl or <layers>x<heads>x<width>",
        ),
        ({"size": "2x3x16"}, "size '2x3x16': width 16 is not a multiple of 3 heads"),
        ({"size": "gpt2", "n_layer": 2}, "size 'gpt2' already says n_layer; give one or the other"),
    ],
)
def test_wrong_sizes_are_refused_in_words(model, expected):
    values = values_of_size("gpt2")
    values["model"] |= model
    with pytest.raises(UserError, match=expected):
        config.parse_settings(values, source="test")


def test_the_schema_takes_a_size_or_three_numbers_and_not_both():
    import json

    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert validator.is_valid(merged(demo_values(), TINY)) and validator.is_valid(values_of_size("gpt2-xl"))
    both = merged(values_of_size("gpt2"), {"model": {key: 2 for key in SHAPE}})
    assert not validator.is_valid(both) and not validator.is_valid(values_of_size("gpt3"))


def test_sizes_multiply_the_grid_and_its_price():
    settings = config.parse_settings(
        merged(merged(demo_values(), TINY), {"grid": {"sizes": ["1x2x16", "gpt2"]}}), source="test"
    )
    plain = config.parse_settings(merged(demo_values(), TINY), source="test")
    runs = settings.grid.runs()
    assert len(runs) == 2 * len(plain.grid.runs()) == config.stage_settings(settings, "score")["sweep_size"]
    assert [run.name for run in plain.grid.runs()] == [
        run.name.removeprefix("1x2x16_") for run in runs[: len(runs) // 2]
    ]
    assert runs[-1].name.startswith("gpt2_d60_learned_seed")
    model = settings.for_run(runs[-1]).model
    assert (model.n_layer, model.n_head, model.n_embd) == (12, 12, 768)
    assert model.context_length == settings.model.context_length


def test_a_base_that_is_a_file_has_one_size():
    values = merged(merged(demo_values(), TINY), {"grid": {"sizes": ["1x2x16"]}}) | {"base": PRETRAINED}
    with pytest.raises(UserError, match="grid.sizes needs base.kind random, found pretrained"):
        config.parse_settings(values, source="test")


def test_settings_without_the_new_axes_are_what_they_were():
    """No stage sees a key that is left out, so nothing reruns for it."""
    settings = config.parse_settings(merged(demo_values(), TINY), source="test")
    assert settings.grid.sizes is None and settings.grid.trained is None
    for stage in config.STAGES:
        text = str(config.stage_settings(settings, stage))
        assert "learning_rates" not in text and "permute" not in text
    spec = settings.grid.runs()[0]
    assert settings.for_run(spec) is settings
    assert spec.model_dump(exclude_none=True).keys() == {"budget", "allocation", "seed"}
    assert isinstance(settings, Settings)


def test_each_run_is_of_its_own_size_in_every_stage(tiny_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tiny_root, root)
    grid = {"budgets": [40], "allocations": ["uniform"], "seeds": [1], "sizes": ["1x2x16", "2x2x32"]}
    path = write_settings(root, {"grid": grid, "training": {"steps": 5}})
    settings = config.load_settings(path)
    hashes = set()
    for spec in settings.grid.runs():
        out = root / "results/runs" / spec.name
        train_run(settings, spec, root=root, out=out)
        score_run(out, config_path=path)
        bound_run(out, config_path=path)
        message = read_message(out / "certificate.bin")
        layers, heads, width = map(int, spec.size.split("x"))
        model = message.settings.model
        assert (model.n_layer, model.n_head, model.n_embd) == (layers, heads, width)
        assert decoder_header(message)["heads"] == heads
        assert message.header.base_sha256 == random_base(settings.for_run(spec), 257, 1).sha256
        assert build_on(root, settings, spec).network.backbone.shape.n_embd == width
        assert verify_run(out, root=root).verified
        hashes.add(message.header.base_sha256)
    assert len(hashes) == 2
