"""What settings cost by the references that come with the package: the code is one, and pays for every difference."""

import itertools
import json
import math

import pytest
import yaml
from conftest import REPOSITORY

from sublora import config
from sublora.bounds.premises import BoundedLoss, Premises, headline_bound
from sublora.bounds.run_bounds import (
    NOTHING_CHARGED,
    ChargedMessage,
    SettingsCharge,
    strict_bound,
)
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture
from sublora.coding.bits import BitReader, BitWriter, index_bits
from sublora.config import marks
from sublora.config.marks import (
    charged_keys,
    claim_settings,
    differing_keys,
    reference,
    reference_names,
    unfit,
)
from sublora.runs.bound import settings_bits, settings_charge
from sublora.system.streams import generator

FILES = {
    "full": "config/config.yaml",
    "demo": "demo/config/config.yaml",
    "random_base": "demo/config/random_base.yaml",
}
INDEX_BITS, KEY_BITS = index_bits(len(reference_names())), index_bits(len(charged_keys()))


def changed(name: str, **sections: dict) -> config.Settings:
    values = reference(name).model_dump(mode="json")
    for section, keys in sections.items():
        values[section] = values[section] | keys
    return config.parse_settings(values, source=name)


def written(settings: config.Settings, name: str) -> BitWriter:
    """The code itself."""
    writer, values, differing = BitWriter(), claim_settings(settings), differing_keys(settings, reference(name))
    writer.write_uint(reference_names().index(name), INDEX_BITS)
    writer.write_elias_gamma(len(differing) + 1)
    for key in differing:
        writer.write_uint(charged_keys().index(key), KEY_BITS)
        text = json.dumps(values[key], sort_keys=True, separators=(",", ":")).encode()
        writer.write_elias_delta(int.from_bytes(b"\1" + text, "big"))
    return writer


def read(writer: BitWriter) -> tuple[str, dict[str, object], int]:
    """Reference, differing values, and the bits that were read."""
    reader = BitReader(writer.bits())
    name = reference_names()[reader.read_uint(INDEX_BITS)]
    differing = {}
    for _ in range(reader.read_elias_gamma() - 1):
        key = charged_keys()[reader.read_uint(KEY_BITS)]
        number = reader.read_elias_delta()
        differing[key] = json.loads(number.to_bytes((number.bit_length() + 7) // 8, "big")[1:])
    return name, differing, reader.position


CASES = [
    {},
    {"lora": {"alpha": 60.0}},
    {"grid": {"seeds": [1, 2], "budgets": [500]}},
    {"scoring": {"documents": 901, "smoothing": ["document(3)"]}, "data": {"shuffle_seed": 1}},
]


@pytest.mark.parametrize("sections", CASES)
def test_bits_are_those_of_a_code_that_can_be_read(sections):
    settings = changed("demo", **sections)
    writer = written(settings, "demo")
    assert writer.position == settings_bits(settings, "demo")
    writer.write_uint(0b1011, 4)  # whatever follows
    name, differing, position = read(writer)
    assert (name, position) == ("demo", settings_bits(settings, "demo"))
    expected = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    assert differing == expected


def test_no_code_begins_another():
    codes = ["".join(map(str, written(changed("demo", **sections), "demo").bits())) for sections in CASES]
    codes += ["".join(map(str, written(reference("full"), name).bits())) for name in ("demo", "full")]
    assert not any(a.startswith(b) for a, b in itertools.permutations(codes, 2))


def test_a_reference_costs_its_index_and_one_bit():
    for name in reference_names():
        assert settings_charge(reference(name)) == SettingsCharge(name, INDEX_BITS + 1, None)


def test_how_a_message_was_found_and_what_it_is_about_cost_nothing():
    corpus = {"kind": "folder", "path": "texts", "text_field": "text", "unit_field": None}
    settings = changed(
        "demo",
        training={"steps": 7},
        compute={"threads": 3},
        lora={"dropout": 0.3},
        data={"name": "mine", "corpus": corpus, "workers": 1},
        message={"extra_bits": 5.0},
        scoring={"sources": None},
    )
    assert settings_bits(settings, "demo") == INDEX_BITS + 1


def test_every_key_of_a_claim_is_charged_or_stated_to_be_free():
    population = {"data.name", "data.corpus", "data.permute", "base.name", "base.corpus", "base.independence"}
    conditions = {f"bound.{key}" for key in config.Bound.model_fields} | {"message.extra_bits"}
    for name in reference_names():
        free = claim_settings(reference(name)).keys() - set(charged_keys())
        assert free <= population | conditions | {"scoring.sources", "scoring.base_sources"}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"bound": {"delta": 0.06}}, "bound.delta is 0.06"),
        ({"bound": {"delta_sample": 0.04}}, "bound.delta_sample is 0.04"),
        ({"scoring": {"documents": "all"}}, "all documents scored is True"),
    ],
)
def test_conditions_of_a_reference(sections, reason):
    """The confidence, its division and the inequality are promised, not chosen."""
    settings = changed("demo", **sections)
    assert reason in str(unfit(settings, "demo"))
    charge = settings_charge(settings)
    assert charge.bits is None and reason in str(charge.reason)


def test_hand_tuning_is_charged_at_least_as_the_reference_charges_it(monkeypatch):
    untuned, tuned = reference("demo"), changed("demo", message={"extra_bits": 3.0 + untuned_bits()})
    assert unfit(tuned, "demo") is None
    monkeypatch.setattr(marks, "reference", lambda name: tuned)
    assert "message.extra_bits" in str(unfit(untuned, "demo"))


def untuned_bits() -> float:
    return reference("demo").message.extra_bits


@pytest.mark.parametrize("name", FILES)
def test_references_are_the_files_of_the_release(name):
    """In the package, so that an edited settings file is no reference."""
    assert set(FILES) == set(reference_names())
    assert reference(name) == config.load_settings(REPOSITORY / FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_a_reference_writes_every_key(name):
    """Otherwise a changed default would change what certificates of a release were charged."""
    text = (REPOSITORY / f"sublora/config/references/{name}.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == reference(name).model_dump(mode="json")


def premises_of(delta: float, delta_sample: float | None) -> Premises:
    return Premises(17_000, delta, None if delta_sample is None else 900, delta_sample, sweep_size=30)


def strict_inputs(delta_sample: float | None = 0.045) -> tuple:
    loss = BoundedLoss((DocumentMixture(8),), 257, 33, premises_of(0.05, delta_sample))
    items = {"symbols": 1000, "arm": 5, "extra": 3.0}
    message = ChargedMessage(DocumentMixture(8), items, {}, {})
    return generator("strict").normal(4.7, 0.5, size=900), loss, message


@pytest.mark.parametrize("delta_sample", [0.045, None])
def test_strict_bound_charges_the_settings_twice(delta_sample):
    """In C, and in the share of delta_sample of each alternative's draw."""
    losses, loss, message = strict_inputs(delta_sample)
    if delta_sample is None:
        losses = generator("strict").normal(4.7, 0.5, size=loss.premises.n_units)
    record = strict_bound(losses, loss, message, SettingsCharge("demo", 40, None))
    share = None if delta_sample is None else delta_sample / 30 / 2**43
    delta = 0.05 if share is None else 0.05 - 0.045 + share
    expected = headline_bound(
        losses,
        message.smoothing.loss_range_bits(257, 33),
        1008.0 + 40,
        premises_of(delta, share),
    )
    assert record["bound_strict"] == pytest.approx(expected + SCORE_TOLERANCE_BITS, rel=1e-12)
    assert (record["settings_bits"], record["settings_reference"]) == (40, "demo")


def test_more_bits_never_lower_the_strict_bound():
    losses, loss, message = strict_inputs()
    bounds = [
        strict_bound(losses, loss, message, SettingsCharge("demo", bits, None))["bound_strict"]
        for bits in (0, 1, 10, 100, 500, 890)
    ]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(bounds)) and not math.isnan(bounds[-1])


def test_where_there_is_no_code_there_is_no_bound_but_a_reason():
    assert strict_bound(*strict_inputs(), NOTHING_CHARGED)["bound_strict"] is None
    too_many = strict_bound(*strict_inputs(), SettingsCharge("demo", 5000, None))
    assert too_many["bound_strict"] is None and "more than 900 bits" in str(too_many["bound_strict_absent"])
    with pytest.raises(ValueError, match="a charge is a reference"):
        SettingsCharge("demo", None, None)
