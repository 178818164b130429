"""A run whose units are groups of documents: n, losses, draws, certificate and verdict by brute force."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import Prover
from conftest import write_settings
from test_data_units import sample_rows, write_authors

from sublora import config
from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, parse_smoothing
from sublora.data.base_and_target import open_target
from sublora.data.prepare import prepare_dataset
from sublora.losses.documents import score_documents
from sublora.runs.bound import bound_run, read_losses
from sublora.runs.build import build_run
from sublora.runs.message import read_message
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.errors import UserError
from sublora.system.files import sha256_of_file
from sublora.tools.plan import scoring_tokens
from sublora.training.rate_phase import training_documents
from sublora.yardsticks.record import read_yardsticks

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
CORPUS = {"kind": "folder", "path": "texts", "text_field": "text", "unit_field": "author"}


def changes(unit="source", documents="all"):
    corpus = CORPUS if unit == "source" else CORPUS | {"unit_field": None}
    return {
        "data": {"corpus": corpus, "unit": unit, "val_documents": 30, "test_documents": 30},
        "scoring": {"documents": documents, "sliding_window": 10, "val_documents": 20, "test_documents": 25},
        "message": {"quantizer": "entropy", "extra_bits": 3.0},
    }


def finished(root: Path, scored) -> Path:
    root.mkdir(exist_ok=True)
    config_path = write_settings(root, changes(documents=scored))
    settings = config.load_settings(config_path)
    if not (root / "data").exists():
        write_authors(root, sample_rows(80))
        prepare_dataset(settings.data, root)
    out = root / "results/runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out, config_path=config_path)
    return root


@pytest.fixture(scope="module", params=["all", 35])
def honest(tmp_path_factory, request) -> Path:
    return finished(tmp_path_factory.mktemp("units") / "root", request.param)


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", SPEC.name)


def unit_losses(root, path, split, indices_U):
    """Each document scored on its own, then averaged."""
    message = read_message(path / "certificate.bin")
    dataset = open_target(message.settings, root)
    run = build_run(message.settings, SPEC, dataset, root, torch.device("cpu"))
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    starts = np.append(dataset.units(split).starts_U, dataset.units(split).documents)
    losses = {}
    for u in set(indices_U.tolist()):
        documents = [dataset.document(split, i) for i in range(starts[u], starts[u + 1])]
        one_by_one = [score_documents(model, [document], run.scoring_rule, run.device) for document in documents]
        losses[u] = np.mean([scores.losses_DA([message.smoothing], 257)[0, 0] for scores in one_by_one])
    return np.array([losses[u] for u in indices_U.tolist()])


@pytest.mark.slow
def test_losses_and_bound_are_those_of_units(honest):
    path = honest / "results/runs" / SPEC.name
    record = json.loads((path / "bounds.json").read_text())
    message, losses = read_message(path / "certificate.bin"), read_losses(path / "losses.npz").arrays
    dataset = open_target(message.settings, honest)
    assert record["unit"] == "source" and record["n_units"] == dataset.n_units < record["n_documents"]
    assert record["n_documents"] == dataset.n_documents
    drawn = losses["indices"]
    assert losses["losses_bits"] == pytest.approx(unit_losses(honest, path, "train", drawn), abs=1e-5)
    assert len(losses["target_counts"]) == dataset.units("train").sizes_U[drawn].sum() == record["m_documents"]
    for split, wanted in (("val", 20), ("test", 25)):
        sizes = dataset.units(split).sizes_U
        count = int(np.argmax(np.cumsum(sizes) >= wanted)) + 1
        expected = unit_losses(honest, path, split, np.arange(count))
        assert losses[f"{split}_losses_bits"] == pytest.approx(expected, abs=1e-5)
    assert record["test_units"] == len(losses["test_losses_bits"]) < 25
    smoothing = parse_smoothing(record["smoothing"])
    lower, upper = smoothing.loss_range_bits(257, message.settings.data.min_tokens + 1)
    common = {"lower": lower, "upper": upper, "code_bits": record["code_bits"], "n": dataset.n_units, "delta": 0.05}
    if message.settings.scoring.documents == "all":
        assert drawn.tolist() == list(range(dataset.n_units))
        assert record["bound_value"] == pytest.approx(betting(losses["losses_bits"], **common) + SCORE_TOLERANCE_BITS)
    else:
        assert len(drawn) == record["m_units"] == 35 and drawn.max() < dataset.n_units
        expected = betting_subsampled(losses["losses_bits"], **common, delta_sample=0.045)
        assert record["bound_value"] == pytest.approx(expected + SCORE_TOLERANCE_BITS)


def test_the_draw_of_training_and_the_plan_count_units(honest):
    settings = config.load_settings(honest / "config/config.yaml")
    dataset = open_target(settings, honest)
    run = build_run(settings, SPEC, dataset, honest, torch.device("cpu"))
    assert training_documents(run)._units.starts_U is not None
    estimator = run.estimator()
    assert estimator.loss.premises.n_units == dataset.n_units
    assert len(estimator.units) < len(estimator.documents)
    assert scoring_tokens(settings, dataset) > 0


def test_yardsticks_count_units(honest):
    settings = config.load_settings(honest / "config/config.yaml")
    dataset = open_target(settings, honest)
    rows = read_yardsticks(make_yardsticks(settings, root=honest), dataset.data_hash).rows
    scored = settings.scoring.documents
    assert {row.n for row in rows.values()} == {dataset.n_units}
    assert rows["frozen_base"].m == (dataset.n_units if scored == "all" else scored)
    assert rows["order3"].m == rows["frozen_base"].m


def test_more_units_than_there_are_cannot_be_drawn(honest, tmp_path):
    settings = config.load_settings(write_settings(tmp_path, changes(documents=10**4)))
    with pytest.raises(UserError, match=r"has only \d+ training units; lower scoring.documents"):
        train_run(settings, SPEC, root=honest, out=tmp_path / "out")


# The certificate


def test_honest_claims_are_verified_and_say_what_is_trusted(prover):
    for options in ({}, {"config_path": prover.expected}, {"redraw": 20, "nonce": "x"}):
        verdict = prover.verdict(**options)
        assert verdict.verified, verdict.wrong
    trusted = "; ".join(verdict.trusted)
    assert "which source they are from is not in the tokens" in trusted
    assert "a text that several sources share is in only one of them" in trusted
    assert "population and base: it holds for those that you named beforehand" in trusted
    assert verdict.premises["data.unit"] == "source"


def test_units_of_the_certificate_edited(prover):
    honest = prover.claim()["bound_value"]
    prover.reseal(lambda header: header.update(n_units=header["n_documents"]))
    if prover.settings.scoring.documents != "all":  # else the losses are too few for such an n
        assert prover.bound()["bound_value"] < honest
    prover.refused("training units n")


def test_documents_claimed_as_units(prover):
    """The settings edited: n would be the number of documents."""
    prover.set(data={"unit": "document", "corpus": CORPUS | {"unit_field": None}})
    prover.bound()
    with pytest.raises(UserError, match="the dataset was made with data"):
        prover.verdict()


def split_units(prover, keep_meta):
    """Every unit cut into its documents, so that n grows; the certificate resealed on the edited data."""
    path = prover.data / "unit_starts_train.npy"
    documents = json.loads((prover.data / "meta.json").read_text())["splits"]["train"]["documents"]
    np.save(path, np.arange(documents))
    if keep_meta:
        return
    meta = json.loads((prover.data / "meta.json").read_text())
    meta["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    meta["splits"]["train"]["units"] = documents
    (prover.data / "meta.json").write_text(json.dumps(meta))
    data_hash = open_target(prover.settings, prover.root).data_hash
    prover.reseal(lambda header: header.update(n_units=documents, data_hash=data_hash))


def test_units_of_the_data_cut_so_that_n_grows(prover, honest):
    """Refused on the verifier's own data: which documents belong together is part of their hash."""
    before = prover.claim()["bound_value"]
    split_units(prover, keep_meta=False)
    prover.score()
    assert prover.bound()["bound_value"] != before
    shutil.rmtree(prover.root / "data")
    shutil.copytree(honest / "data", prover.root / "data")
    prover.refused("data hash", "training units n")


def test_units_cut_behind_the_back_of_meta_json(prover):
    split_units(prover, keep_meta=True)
    with pytest.raises(UserError, match="unit_starts_train.npy: found"):
        prover.verdict()


def test_units_that_share_documents(prover):
    """A unit that begins twice, in files whose hashes fit: n grows, but no document is in two units."""
    path, meta_path = prover.data / "unit_starts_train.npy", prover.data / "meta.json"
    starts, meta = np.load(path), json.loads(meta_path.read_text())
    np.save(path, np.repeat(starts, 2))
    meta["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    meta["splits"]["train"]["units"] = 2 * len(starts)
    meta_path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="the units do not partition"):
        prover.verdict()
