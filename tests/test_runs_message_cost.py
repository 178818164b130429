"""What a message will cost, said before anything is trained."""

import math

import numpy as np
import pytest
from conftest import TINY, demo_values, merged, write_settings

from sublora import config
from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.smoothing import parse_smoothing
from sublora.coding.quantizer import ideal_message_bits, quantize_entropy
from sublora.data.base_and_target import open_target
from sublora.models.spaces import model_parameters
from sublora.runs import train
from sublora.runs.message_cost import bits_per_coefficient, message_cost
from sublora.runs.train import train_run
from sublora.system.errors import UserError
from sublora.tools.plan import print_plan

WHOLE = {
    "grid": {"budgets": ["all"], "allocations": ["uniform"], "seeds": [1]},
    "subspace": {"adapt": "weights", "projection": "identity"},
    "message": {"quantizer": "entropy"},
}


def settings_with(changes: dict) -> config.Settings:
    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="test")


@pytest.mark.parametrize("relative_step", [0.5, 0.9, 1.2])
def test_bits_are_about_those_of_a_quantized_gaussian(relative_step):
    settings = settings_with(WHOLE | {"rate_phase": {"relative_step": relative_step}})
    w = np.random.default_rng(0).standard_normal(50_000)
    real = ideal_message_bits(quantize_entropy(w, relative_step)) / len(w)
    assert bits_per_coefficient(settings) == pytest.approx(real, rel=0.1)


def test_the_lowest_bound_is_that_of_a_model_without_loss(tiny_root):
    settings = settings_with({"message": {"quantizer": "plain"}, "scoring": {"smoothing": ["document(4)"]}})
    dataset = open_target(settings, tiny_root)
    cost = message_cost(settings, 40, dataset)
    symbol_bits = 40 * math.log2(settings.message.levels)
    assert cost.bits > symbol_bits
    loss_range = parse_smoothing("document(4)").loss_range_bits(dataset.vocab_size, settings.data.min_tokens + 1)
    common = {
        "lower": loss_range.lower,
        "upper": loss_range.upper,
        "code_bits": symbol_bits,
        "n": dataset.n_units,
        "delta": settings.bound.delta,
    }
    of_all = betting(np.full(dataset.n_units, loss_range.lower), **common)
    assert cost.lowest_bound_bits == pytest.approx(of_all, abs=1e-6)
    of_m = betting_subsampled(np.full(50, loss_range.lower), **common, delta_sample=settings.bound.delta_sample)
    assert cost.lowest_bound_bits < of_m


def test_all_weights_of_gpt2_are_refused_before_anything_is_built(tiny_root, tmp_path, monkeypatch):
    """The line says what they would cost: 220 million bits, and a bound that says nothing."""
    monkeypatch.setattr(train, "build_run", lambda *_, **__: pytest.fail("something was built"))
    settings = settings_with(WHOLE | {"grid": WHOLE["grid"] | {"sizes": ["gpt2"]}})
    spec = settings.grid.runs()[0]
    weights = model_parameters(settings.for_run(spec).model, 257)
    expected = (
        rf"w has {weights:,} coordinates, a message of about 1\d\d,.*training loss of 0 the bound would be .*"
        r"guessing: 8.01.*at most 1,000,000 coordinates; train a subspace"
    )
    with pytest.raises(UserError, match=expected):
        train_run(settings, spec, root=tiny_root, out=tmp_path / "out")


def test_an_absurd_message_is_announced_and_an_ordinary_one_is_not(tiny_root, tmp_path, capfd):
    for changes, announced in ((WHOLE, True), ({"grid": {"budgets": [5]}, "message": {"quantizer": "entropy"}}, False)):
        settings = settings_with(changes | {"training": {"steps": 5}})
        spec = settings.grid.runs()[0]
        train_run(settings, spec, root=tiny_root, out=tmp_path / spec.name)
        said = capfd.readouterr()
        text = said.out + said.err
        assert ("even with a training loss of 0 the bound would be" in " ".join(text.split())) == announced
        if announced:
            assert text.index("w has") < text.index("step 5")


def test_the_plan_says_it_of_every_kind_of_run(tiny_root, tmp_path, capfd, monkeypatch):
    import shutil

    root = tmp_path / "root"
    shutil.copytree(tiny_root, root)
    trained = ["lora-kronecker_qr", "lora-identity", "weights-identity"]
    path = write_settings(root, {"grid": {"budgets": [40], "allocations": ["uniform"], "trained": trained}})
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(path, tokens_per_second=1000.0)
    text = capfd.readouterr().out
    assert "message, d = 40" in text and "message, d = 802" in text
    settings = config.load_settings(path)
    assert f"message, d = {model_parameters(settings.model, 257):,}" in text
    assert "with a loss of 0 the bound is" in text and "guessing 8.01" in text
