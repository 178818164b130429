"""The canonical decoder header: one spelling for one predictor on these documents, another for every other one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.coding.payload import MessageContents, write_payload
from sublora.coding.quantizer import EntropyWeights, PlainWeights, nearest_step_index
from sublora.runs.message import Header, Message, decoder_header, payload_context
from sublora.runs.score import draw_units
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.hashes import lora_init_sha256, projection_sha256, space_sha256
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.streams import generator

BUDGET = 40
HASHES = ("base", "seen_base", "space", "lora_init", "projection")
FACTS = {f"{name}_sha256": f"{i}" * 64 for i, name in enumerate(HASHES)} | {
    "data_hash": "d" * 64,
    "vocab_size": 257,
    "n_units": 240,
    "n_documents": 240,
    "sources": None,
    "longest_targets": 90,
    "numerics_versions": {"score": 3, "train": 3},
    "environment": {"torch": "2"},
}
ENTROPY = {"message": {"quantizer": "entropy"}, "scoring": {"smoothing": ["document(1)", "document(3)"]}}
LEARNED = config.RunSpec(budget=BUDGET, allocation="learned", seed=1)
SYMBOLS = generator("symbols").integers(-3, 4, size=BUDGET)


def message(
    changes: dict | None = None,
    *,
    spec: config.RunSpec = LEARNED,
    step: float = 0.125,
    gate: int = 7,
    smoothing: int = 1,
    symbols: np.ndarray = SYMBOLS,
    **facts: object,
) -> Message:
    """A message of made-up hashes, with the entropy code unless `changes` say otherwise."""
    values = merged(merged(merged(demo_values(), TINY), ENTROPY), changes or {})
    settings = config.parse_settings(values, source="test")
    header = Header(**(FACTS | {"run": spec, "settings": {}} | facts))
    context = payload_context(settings, spec)
    weights: EntropyWeights | PlainWeights = EntropyWeights(symbols, nearest_step_index(step))
    if settings.message.quantizer == "plain":
        codebook = np.linspace(-3 * step, 3 * step, 7).astype(np.float16)
        weights = PlainWeights(codebook, symbols + 3)
    contents = MessageContents(weights, tuple(min(gate, size) for size in context.gate_sizes), smoothing)
    return Message(
        Path("certificate.bin"), header, settings, spec, contents, write_payload(contents, context), "0" * 64
    )


def header(*args: object, **kwargs: object) -> dict:
    return decoder_header(message(*args, **kwargs))


def test_it_is_plain_json():
    assert json.loads(json.dumps(header(), allow_nan=False)) == header()


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"steps": 21, "learning_rate": 0.3}},
        {"rate_phase": {"rate_factor": 9.0}},
        {"compute": {"threads": 2, "scoring_batch_tokens": 77, "dtype": "bfloat16"}},
        {"data": {"workers": 7}},
        {"gating": {"learning_rate": 1.0, "soft_fraction": 0.5}},
        {"lora": {"dropout": 0.5, "targets": ["head", "value", "query"]}},
        {"bound": {"delta": 0.1}},
        {"message": {"extra_bits": 4.0}},
        {"grid": {"seeds": [1, 2, 3]}},
        # What names arrays that stand as their hashes.
        {"subspace": {"projection_seed": 5}},
        # What seeds no draw: a smaller m draws the first of the same units.
        {"scoring": {"documents": "all"}},
        {"scoring": {"documents": 51}},
        # What no document sees.
        {"data": {"min_tokens": 2}},
        {"message": {"levels": 12}},
    ],
)
def test_what_reaches_neither_predictor_nor_draw_does_not_change_it(changes):
    assert header(changes) == header()


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"alpha": 7.0}},
        {"lora": {"rank": 1}},
        {"lora": {"init": "both_random"}},
        {"model": {"n_head": 1}},
        {"scoring": {"sliding_window": 11}},
        {"scoring": {"smoothing": ["document(1)", "document(4)"]}},
    ],
)
def test_what_reaches_them_changes_it(changes):
    assert header(changes) != header()


@pytest.mark.parametrize("key", [f"{name}_sha256" for name in HASHES[1:]])
def test_every_hash_of_an_array_changes_it(key):
    assert header(**{key: "f" * 64}) != header()
    # The base's own file may have position embeddings that no document reaches.
    assert header(base_sha256="f" * 64) == header()
    assert header(numerics_versions={"score": 4, "train": 3}) != header()
    assert header(numerics_versions={"score": 3, "train": 4}, environment={}) == header()


def test_what_the_message_chose_changes_it():
    other = SYMBOLS.copy()
    other[3] += 1
    found = [header(), header(symbols=other), header(step=0.25), header(gate=8), header(smoothing=0)]
    assert len({json.dumps(each, sort_keys=True) for each in found}) == len(found)


def test_a_predictor_has_one_header_however_its_message_is_spelled():
    # By the entropy code or by the plain one: the numbers that are decoded count.
    plain = {"message": {"quantizer": "plain", "levels": 7}}
    assert header(plain) == header()
    # Beside smoothings that were not chosen, at another place.
    grid = {"scoring": {"smoothing": ["document(8)", "document(2)", "document(3)"]}}
    assert header(grid, smoothing=2) == header()
    # By a seed or a ratio whose arrays are the same.
    assert header(spec=LEARNED.model_copy(update={"seed": 9})) == header()
    ratios = [config.RunSpec(budget=BUDGET, allocation=f"fixed-{text}", seed=1) for text in ("0.2", "0.2001", ".2")]
    assert header(spec=ratios[0]) == header(spec=ratios[1]) == header(spec=ratios[2])


def test_where_only_b_learns_scale_and_step_are_one_number():
    twice, once = {"lora": {"alpha": 16.0}}, {"lora": {"alpha": 8.0}}
    assert header(twice, step=0.0625, gate=BUDGET) == header(once, step=0.125, gate=BUDGET)
    # With a coordinate for an A they are two.
    assert header(twice, step=0.0625, gate=BUDGET - 1) != header(once, step=0.125, gate=BUDGET - 1)


def test_windows_count_only_where_a_document_is_longer_than_the_context():
    context = message().settings.model.context_length
    other = {"model": {"context_length": 2 * context}, "scoring": {"sliding_window": 11}}
    assert header(longest_targets=context + 1)["windows"] is not None
    assert header(longest_targets=context)["windows"] is None
    assert header(other, longest_targets=context) == header(longest_targets=context)
    assert header(other, longest_targets=context + 1) != header(longest_targets=context + 1)


def test_documents_are_drawn_by_header_and_data():
    def draw(alpha: float = 8.0, data_hash: str = "hash", m: int = 500) -> np.ndarray:
        return draw_units(header({"lora": {"alpha": alpha}}), data_hash, n=1000, m=m)

    assert np.array_equal(draw(), draw())
    for other in (draw(alpha=8.0001), draw(data_hash="hasi")):
        assert not np.array_equal(draw(), other)
    assert draw().min() >= 0 and draw().max() < 1000 and len(np.unique(draw())) < 500
    # A prover who tries sizes sees one sequence of units, not one draw per size.
    assert np.array_equal(draw(m=311), draw()[:311])


SPACE = ParameterSpace.of([("a", (10, 3), "0", "A"), ("b", (20, 2), "0", "B")])


def subspace(allocation: str = "fixed-0.5", seed: int = 1, origin: float = 0.0) -> Subspace:
    shape = SubspaceShape(SPACE, parse_allocation(allocation), 12)
    theta = np.full(SPACE.size, origin, dtype=np.float32)
    return Subspace(shape, theta, lambda name: generator(seed, name))


def test_hashes_name_the_origin_and_the_map_from_w_to_theta():
    assert lora_init_sha256(subspace()) == lora_init_sha256(subspace("uniform", seed=2))
    assert lora_init_sha256(subspace(origin=1e-30)) != lora_init_sha256(subspace())
    hashes = {projection_sha256(subspace(*case)) for case in (("fixed-0.5", 1), ("fixed-0.5", 2), ("uniform", 1))}
    assert len(hashes) == 3
    assert projection_sha256(subspace(origin=1.0)) == projection_sha256(subspace())
    # Rounds to the same six coordinates for B.
    assert projection_sha256(subspace("fixed-0.51")) == projection_sha256(subspace())


def test_the_hash_of_a_space_names_names_shapes_groups_and_roles():
    described = [(p.name, p.shape, p.group, p.role) for p in SPACE.parameters]
    assert space_sha256(ParameterSpace.of(described)) == space_sha256(SPACE)
    for place, value in ((0, "c"), (1, (3, 10)), (2, "1"), (3, "C")):
        changed = list(described[1])
        changed[place] = value
        assert space_sha256(ParameterSpace.of([described[0], tuple(changed)])) != space_sha256(SPACE)
    assert space_sha256(dataclasses.replace(SPACE)) == space_sha256(SPACE)
