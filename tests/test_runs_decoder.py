"""The canonical decoder header: it changes with whatever reaches the predictor or the draw, and with nothing else."""

import json

import numpy as np
import pytest
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.runs.decoder import decoder_header
from sublora.runs.score import draw_units
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.hashes import lora_init_sha256, projection_sha256
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.streams import generator

FACTS = {
    **{key: key[:1] * 64 for key in ("base_sha256", "lora_init_sha256", "projection_sha256", "data_hash")},
    "vocab_size": 257,
    "n_documents": 240,
    "numerics_versions": {"score": 3, "train": 3},
    "environment": {"torch": "2"},
}
LEARNED = config.RunSpec(budget=40, allocation="learned", seed=1)


def header(changes: dict | None = None, spec: config.RunSpec = LEARNED, **facts: object) -> dict:
    settings = config.parse_settings(merged(merged(demo_values(), TINY), changes or {}), source="test")
    return decoder_header(settings, spec, FACTS | facts)


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
        {"lora": {"targets": ["query", "value"]}},
        {"model": {"n_head": 1}},
        {"gating": {"sharing": "per_layer"}},
        {"message": {"levels": 12}},
        {"message": {"quantizer": "entropy"}},
        {"scoring": {"documents": "all"}},
        {"scoring": {"documents": 51}},
        {"scoring": {"sliding_window": 11}},
        {"scoring": {"smoothing": ["document(2)", "document(1)"]}},
        {"data": {"min_tokens": 2}},
    ],
)
def test_what_reaches_them_changes_it(changes):
    assert header(changes) != header()


@pytest.mark.parametrize("key", [key for key in FACTS if key not in ("numerics_versions", "environment")])
def test_every_hash_and_count_changes_it(key):
    assert header(**{key: "f" * 64 if isinstance(FACTS[key], str) else 11}) != header()
    assert header(numerics_versions={"score": 4, "train": 3}) != header()
    assert header(numerics_versions={"score": 3, "train": 4}, environment={}) == header()


def test_keys_without_effect_are_null():
    """Levels of a code that has none, sharing of gates that are not there, and two spellings of one ratio."""
    entropy = {"message": {"quantizer": "entropy"}}
    assert header({"message": {"quantizer": "entropy", "levels": 12}}) == header(entropy)
    uniform = config.RunSpec(budget=40, allocation="uniform", seed=1)
    assert header({"gating": {"sharing": "per_layer"}}, uniform) == header(None, uniform)
    ratios = [config.RunSpec(budget=40, allocation=f"fixed-{text}", seed=1) for text in ("0.2", "0.20", ".2")]
    assert header(None, ratios[0]) == header(None, ratios[1]) == header(None, ratios[2])


def test_documents_are_drawn_by_header_payload_and_data():
    def draw(alpha: float = 8.0, payload: bytes = b"payload", data_hash: str = "hash") -> np.ndarray:
        return draw_units(header({"lora": {"alpha": alpha}}), payload, data_hash, n=1000, m=500)

    assert np.array_equal(draw(), draw())
    for other in (draw(alpha=8.0001), draw(payload=b"payloae"), draw(data_hash="hasi")):
        assert not np.array_equal(draw(), other)
    assert draw().min() >= 0 and draw().max() < 1000 and len(np.unique(draw())) < 500


def subspace(allocation: str = "fixed-0.5", seed: int = 1, origin: float = 0.0) -> Subspace:
    space = ParameterSpace.of([("a", (10, 3), "0", "A"), ("b", (20, 2), "0", "B")])
    shape = SubspaceShape(space, parse_allocation(allocation), 12)
    theta = np.full(space.size, origin, dtype=np.float32)
    return Subspace(shape, theta, lambda name: generator(seed, name))


def test_hashes_name_the_origin_and_the_map_from_w_to_theta():
    assert lora_init_sha256(subspace()) == lora_init_sha256(subspace("uniform", seed=2))
    assert lora_init_sha256(subspace(origin=1e-30)) != lora_init_sha256(subspace())
    hashes = {projection_sha256(subspace(*case)) for case in (("fixed-0.5", 1), ("fixed-0.5", 2), ("uniform", 1))}
    assert len(hashes) == 3
    assert projection_sha256(subspace(origin=1.0)) == projection_sha256(subspace())
    # Rounds to the same six coordinates for B.
    assert projection_sha256(subspace("fixed-0.51")) == projection_sha256(subspace())
