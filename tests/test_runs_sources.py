"""The second bound of documents that have sources: over source files, from a draw of its own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from attacks import Prover
from conftest import TINY, demo_values, merged, write_settings

from sublora import config
from sublora.bounds.inequalities import betting_subsampled
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.run_bounds import ChargedMessage, ScoredSources, bounds_by_source
from sublora.bounds.smoothing import TokenSmoothing
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.runs.bound import bound_run, read_losses
from sublora.runs.message import decoder_header, read_message
from sublora.runs.score import draw_of_sources, score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim
from sublora.runs.verify.verify import verify_claim
from sublora.system.errors import UserError
from sublora.system.files import sha256_of_file
from sublora.system.streams import generator

SPEC = config.RunSpec(budget=40, allocation="uniform", seed=1)
CHANGES = {
    "data": {
        "name": "markov",  # where the tools of the attacks look
        "corpus": {"kind": "functions", "packages": ["booby"]},
        "min_tokens": 20,
        "val_documents": 20,
        "test_documents": 20,
    },
    "scoring": {"sliding_window": 10, "documents": "all", "sources": 25, "val_documents": 20, "test_documents": 20},
    "message": {"quantizer": "entropy", "extra_bits": 3.0},
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources") / "root"
    (root / "booby").mkdir(parents=True)
    for i in range(30):
        functions = (f"def f{j}(x):\n    return x + {i} * {j} * 1234567\n\n\n" for j in range(1 + 7 * (i % 3)))
        (root / "booby" / f"m{i}.py").write_text("".join(functions))
    config_path = write_settings(root, CHANGES)
    settings = config.load_settings(config_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        prepare_dataset(settings.data, root)
    out = root / "results/runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out, config_path=config_path)
    return root


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", SPEC.name)


def test_the_bound_over_sources_follows_from_its_draw(honest):
    path = honest / "results/runs" / SPEC.name
    record = json.loads((path / "bounds.json").read_text())
    losses, message = read_losses(path / "losses.npz").arrays, read_message(path / "certificate.bin")
    dataset = open_target(message.settings, honest)
    found, sources = record["by_source"], dataset.source_ids
    assert record["n_units"] == record["n_documents"] == dataset.n_documents > found["n"] == len(set(sources.tolist()))
    assert found["m"] == 25 == len(losses["source_documents"])
    # All documents are scored, so the losses of the draw are known from them.
    assert losses["source_losses_bits"] == pytest.approx(losses["losses_bits"][losses["source_documents"]], abs=1e-5)
    assert found["loss"] == pytest.approx(losses["source_losses_bits"].mean())
    range_bits = {"lower": record["lower_bits"], "upper": record["upper_bits"]}
    common = range_bits | {"code_bits": record["code_bits"], "n": found["n"]}
    values = losses["source_losses_bits"]
    assert found["bound"] == pytest.approx(betting_subsampled(values, **common, delta=0.05, delta_sample=0.045))
    share = 0.045 / 20 / 2**3  # 2 x 5 x 2 runs, 3 bits of tuning
    expected = betting_subsampled(values, **common, delta=0.005 + share, delta_sample=share)
    assert found["bound_all_runs"] == pytest.approx(expected)


def test_sources_are_drawn_alike_and_their_documents_too(honest):
    """Not by their sizes: 1 and 15 documents have the same chance together."""
    message = read_message(honest / "results/runs" / SPEC.name / "certificate.bin")
    dataset = open_target(message.settings, honest)
    drawn = draw_of_sources(message, dataset, m=40_000)
    share_S = np.bincount(dataset.source_ids[drawn]) / len(drawn)
    assert share_S == pytest.approx(np.full(len(share_S), 1 / len(share_S)), abs=0.006)
    sizes_S = np.bincount(dataset.source_ids)
    expected_D = 1 / len(sizes_S) / sizes_S[dataset.source_ids]
    assert np.bincount(drawn, minlength=dataset.n_documents) / len(drawn) == pytest.approx(expected_D, abs=0.006)
    assert np.array_equal(drawn, draw_of_sources(message, dataset, m=40_000))


def test_the_draw_over_documents_does_not_hang_on_sources(honest):
    """Else their number would be a free choice of draws."""
    message = read_message(honest / "results/runs" / SPEC.name / "certificate.bin")
    assert "sources" not in json.dumps(decoder_header(message))


def test_honest_claims_are_verified(prover):
    verdict = prover.verdict(config_path=prover.expected)
    assert verdict.verified, verdict.wrong
    assert verdict.bounds["bound_by_source"] == pytest.approx(prover.claim()["by_source"]["bound"], abs=1e-9)
    assert any("which documents are of one source" in text for text in verdict.trusted)


def test_more_sources_claimed(prover):
    before = prover.claim()["by_source"]["bound"]
    prover.reseal(lambda header: header["sources"].update(n=10 * header["sources"]["n"]))
    assert prover.bound()["by_source"]["bound"] < before
    prover.refused("sources of the training documents")


def test_sources_swapped(prover, honest):
    """The draw is of sources, so a prover who may say which document is from which picks the bound."""
    path = prover.data / "source_ids.npy"
    ids = np.load(path)
    np.save(path, ids[::-1].copy())
    meta = json.loads((prover.data / "meta.json").read_text(encoding="utf-8"))
    meta["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (prover.data / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    dataset = TokenDataset.open_folder(prover.data, prover.settings.data)
    facts = dataset.source_facts()
    prover.reseal(lambda header: header.update(sources=facts))
    prover.refused("data hash")
    # With their hash it is a claim about other data: the draws are others, and a reader of the honest data refuses it.
    before = read_losses(prover.path / "losses.npz").arrays
    prover.reseal(lambda header: header.update(data_hash=dataset.data_hash))
    prover.score()
    prover.bound()
    after = read_losses(prover.path / "losses.npz").arrays
    assert not np.array_equal(after["source_documents"], before["source_documents"])
    assert "data hash" in verify_claim(Claim.of(prover.path, data=honest / "data" / "markov")).wrong


def test_easier_documents_than_those_drawn(prover):
    easiest = np.argsort(read_losses(prover.path / "losses.npz").arrays["losses_bits"])[:25]
    losses = read_losses(prover.path / "losses.npz").arrays["losses_bits"][easiest]
    prover.edit_losses(lambda arrays: arrays.update(source_documents=easiest, source_losses_bits=losses))
    prover.bound()
    prover.refused("documents of the drawn sources")


def test_losses_of_the_draw_edited(prover):
    prover.edit_losses(lambda arrays: arrays.update(source_losses_bits=arrays["source_losses_bits"] - 0.01))
    prover.bound()
    prover.refused("largest difference in source_losses_bits")


@pytest.mark.parametrize("key", ["bound", "bound_all_runs", "loss", "n", "m"])
def test_numbers_of_the_claim_edited(prover, key):
    prover.edit_claim(lambda claim: claim["by_source"].update({key: 1}))
    prover.refused(f"by_source.{key}")


def test_losses_of_fewer_sources_than_asked_for(prover):
    prover.edit_losses(lambda arrays: arrays.update(source_losses_bits=arrays["source_losses_bits"][:5]))
    expected = r"source_losses_bits holds float64 of shape \(5,\), expected floats of shape \(25,\)"
    with pytest.raises(UserError, match=expected):
        prover.bound()
    assert not prover.verdict().verified


def test_sources_are_asked_for_only_where_they_are_known():
    for data in ({}, {"corpus": CHANGES["data"]["corpus"], "unit": "source"}):
        values = merged(merged(demo_values(), TINY), {"data": data, "scoring": {"sources": 5}})
        with pytest.raises(UserError, match="scoring.sources 5 needs data.unit: document and a corpus of source files"):
            config.parse_settings(values, source="x.yaml")


@pytest.mark.slow
def test_one_document_stands_for_its_source_validly():
    """The bound over sources fails no more often than delta, with documents of a source that differ as they can.

    The mean loss of every source is 1/2 or so, of documents with losses near 0 and near 1; C = 0, so that nothing but
    the two draws is between the bound and the truth.
    """
    rng, failures, trials = generator("jensen"), 0, 400
    smoothing = TokenSmoothing(0.5)
    loss = BoundedLoss((smoothing,), 2, 1, Premises(1, 0.2, m_units=1, delta_sample=0.18))
    lower, upper = smoothing.loss_range_bits(2, 1)
    message = ChargedMessage(smoothing, {"arm": 0.0, "extra": 0.0}, {}, {})
    for _ in range(trials):
        share_S = rng.beta(2.0, 2.0, size=40)  # of hard documents in each source
        drawn = rng.integers(40, size=30)
        hard_M = rng.random(30) < share_S[drawn]
        losses_M = np.where(hard_M, upper - 1e-9, lower + 1e-9)
        found = bounds_by_source(ScoredSources(losses_M, 40, 0.18), loss, message)
        failures += found["bound"] < lower + 0.5 * (upper - lower)
    assert failures / trials < 0.2 + 3 * math.sqrt(0.2 * 0.8 / trials)
