"""Attacks on what a verdict says: whose run it is, which bytes were checked, what is quoted, and what is only shown.

The fixtures are those of test_attacks.py. The table in docs/studies/attacks.md names these tests.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import OTHER_RUN, RUN, Prover, honest_runs
from base_samples import complaint
from conftest import build_on, write_settings
from data_samples import FOLDER, write_documents

from sublora import config
from sublora.bounds.premises import held_out_bound
from sublora.bounds.smoothing import with_tolerance
from sublora.coding.certificate import Certificate, read_certificate
from sublora.config.marks import charged_keys
from sublora.data.corpora.markov import MarkovSource
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.prepare import prepare_dataset
from sublora.data.tokenizers import load_tokenizer
from sublora.losses.documents import score_documents
from sublora.runs.message import read_message
from sublora.runs.score import decoded_predictor
from sublora.runs.verify.files import Claim
from sublora.runs.verify.verify import verify_claim
from sublora.training import checkpoint

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)


@pytest.fixture(scope="module")
def honest(honest_root, tmp_path_factory) -> Path:
    return honest_runs(honest_root, tmp_path_factory.mktemp("attacks") / "root", keep_checkpoints=True)


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", RUN)


# Whose run, and which bytes


def test_a_certificate_that_is_another_file_when_it_is_read_again(prover, monkeypatch):
    """As a named pipe may be: the hash of a verdict is that of the bytes that were decoded."""
    path = prover.path / "certificate.bin"
    own = path.read_bytes()
    other = (prover.root / "results/runs" / OTHER_RUN / "certificate.bin").read_bytes()

    def read_and_replace(certificate: Path) -> Certificate:
        found = read_certificate(certificate)
        path.write_bytes(other)
        return found

    monkeypatch.setattr("sublora.runs.message.read_certificate", read_and_replace)
    verdict = prover.verdict()
    assert verdict.verified and verdict.certificate_sha256 == hashlib.sha256(own).hexdigest()
    # The claim names the second certificate, the first one is decoded.
    path.write_bytes(own)
    sha256 = hashlib.sha256(other).hexdigest()
    prover.edit_claim(lambda record: record.update(certificate_sha256=sha256))
    prover.edit_losses(lambda arrays: arrays.update(provenance=renamed(arrays["provenance"], sha256)))
    prover.refused("certificate sha256", "certificate sha256 in losses.npz")


def renamed(provenance: np.ndarray, certificate_sha256: str) -> np.ndarray:
    return np.array(json.dumps(json.loads(str(provenance)) | {"certificate_sha256": certificate_sha256}))


@pytest.mark.parametrize("named_by", ["folder", "certificate"])
def test_a_link_that_is_named_like_another_run(prover, named_by):
    link, neutral = prover.path.with_name("d60_uniform_seed2"), prover.path.with_name("best")
    for path in (link, neutral):
        path.symlink_to(prover.path.name)

    def verdict(path: Path):
        named = {"folder": path} if named_by == "folder" else {"certificate": path / "certificate.bin"}
        return verify_claim(Claim.of(**named, root=prover.root))

    assert verdict(neutral).verified and f"run {RUN}" in verdict(neutral).sentence()
    for path in (link, link / ".." / link.name):
        assert verdict(path).wrong == ["run that the folder is named after"]


def test_a_certificate_in_a_folder_that_is_named_like_another_run(prover):
    """Named by its own path, not by the folder's."""
    moved = shutil.copytree(prover.path, prover.path.with_name("d60_uniform_seed2"))
    claim = Claim.of(certificate=moved / "certificate.bin", root=prover.root)
    assert verify_claim(claim).wrong == ["run that the folder is named after"]


# Held-out bounds, which presuppose that the prover left the test documents alone


def test_bounds_from_test_documents_are_named_as_trusted_and_not_quoted(prover):
    verdict = prover.verdict()
    assert verdict.verified
    claim = prover.claim()
    assert verdict.held_out["bound_held_out"] == pytest.approx(claim["bound_held_out"], abs=1e-9)
    assert "held_out" not in verdict.sentence() and not {"bound_held_out", "test_loss_bits"} & verdict.bounds.keys()
    assert any("bound_held_out" in text and "--test-data" in text for text in verdict.trusted)


@pytest.fixture(scope="module")
def own_texts(honest) -> list[str]:
    """Documents of the same Markov chain which the prover never had."""
    settings = config.load_settings(honest / "config/config.yaml")
    return MarkovSource(settings.data.corpus).fresh_documents(60, 9)


def prepared(root: Path, texts: list[str], **changes: object) -> Path:
    """The folder of a dataset of these texts, all but two of them test documents."""
    root.mkdir()
    write_documents(root, texts)
    corpus = {"kind": "folder", "path": FOLDER, "text_field": "text", "unit_field": None}
    values = {"name": "own", "corpus": corpus, "val_documents": 1, "test_documents": len(texts) - 2} | changes
    one = {"val_documents": 1}
    sections = {"data": values, "scoring": one | {"test_documents": 1}, "rate_phase": one}
    data = config.load_settings(write_settings(root, sections)).data
    prepare_dataset(data, root)
    return dataset_folder(root, data)


def test_the_bound_from_test_documents_of_the_readers_own(prover, honest, own_texts, tmp_path):
    """Equal to what follows from scores that are computed here, and charged with nothing of the message."""
    folder = prepared(tmp_path / "own", own_texts)
    verdict = prover.verdict(test_data=folder)
    assert verdict.verified
    message = read_message(prover.path / "certificate.bin")
    run = build_on(honest, config.load_settings(prover.expected), SPEC)
    dataset = TokenDataset.open_folder(folder, None)
    documents = [dataset.document("test", i) for i in range(len(own_texts) - 2)]
    predictor = decoded_predictor(run, message)
    scores = score_documents(predictor.model, documents, run.scoring_rule, run.device)
    losses_D = scores.losses_DA([message.smoothing], run.dataset.vocab_size)[:, 0]
    loss_range = message.loss.range_of(message.smoothing)
    expected = with_tolerance(held_out_bound(losses_D, loss_range, delta=0.05), loss_range)
    assert verdict.bounds["bound_own_test"] == pytest.approx(expected, abs=1e-9)
    assert verdict.bounds["own_test_loss_bits"] == pytest.approx(losses_D.mean(), abs=1e-9)
    assert verdict.bounds["own_test_units"] == 58 and "bound_own_test" in verdict.sentence()
    assert any("58 test documents" in text and "(0 left out" in text for text in verdict.trusted)


def test_texts_that_the_prover_had_are_left_out_of_the_readers_own(prover, own_texts, tmp_path):
    tokenizer = load_tokenizer("bytes")
    dataset = TokenDataset.open_folder(prover.data, None)
    known = [tokenizer.decode(dataset.document(split, 0)) for split in ("train", "val", "test")]
    folder = prepared(tmp_path / "own", own_texts[:20] + known, test_documents=21)
    verdict = prover.verdict(test_data=folder)
    left_out = sum(
        any(np.array_equal(load_tokenizer("bytes").encode_batch([text])[0], document) for text in known)
        for document in (TokenDataset.open_folder(folder, None).document("test", i) for i in range(21))
    )
    assert left_out and verdict.bounds["own_test_units"] == 21 - left_out
    assert any(f"({left_out} left out" in text for text in verdict.trusted)


def edited_meta(folder: Path, **facts: object) -> Path:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return folder


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda root, texts, data: data, "all of its 30 test documents have a text that is in the claim's data"),
        (lambda root, texts, data: root, "own/meta.json: no such file, the dataset is not prepared"),
        (
            lambda root, texts, data: edited_meta(prepared(root / "a", texts), tokenizer="gpt2"),
            "tokenizer is gpt2, the claim's data have bytes",
        ),
        (
            lambda root, texts, data: edited_meta(prepared(root / "a", texts), vocab_size=300),
            "vocab_size is 300, the claim's data have 257",
        ),
        (
            lambda root, texts, data: prepared(root / "a", texts, unit="source", corpus=GROUPED),
            "data.unit is source, the claim's data have document",
        ),
    ],
)
def test_other_folders_than_those_of_prepared_data_are_one_line(prover, own_texts, tmp_path, make, line):
    (tmp_path / "own").mkdir()
    folder = make(tmp_path / "own", own_texts[:10], prover.data)
    assert line in complaint(lambda: prover.verdict(test_data=folder))


GROUPED = {"kind": "folder", "path": FOLDER, "text_field": "text", "unit_field": "text"}


def test_shorter_documents_than_the_claims_population_has_are_one_line(tiny_root, own_texts, tmp_path):
    """The range of the loss depends on the shortest document."""
    root = shutil.copytree(tiny_root, tmp_path / "root")
    data = config.load_settings(write_settings(root)).data
    from sublora.runs.verify.own_documents import OwnDocuments

    folder = prepared(tmp_path / "own", [*own_texts[:10], "ab"], test_documents=9)
    claimed = TokenDataset.open(root, data)
    lengths = TokenDataset.open_folder(folder, None).document_lengths("test")
    line = complaint(lambda: OwnDocuments.open(folder, claimed, int(lengths.min()) + 1))
    assert f"a document of {lengths.min()} tokens in its test split" in line


# Premises, and what is not checked


def test_every_key_that_is_charged_is_among_the_premises_unless_they_are_compared(prover):
    settings = read_message(prover.path / "certificate.bin").settings.model_dump(mode="json")
    there = {key for key in charged_keys() if key.partition(".")[2] in settings[key.partition(".")[0]]}
    shown = prover.verdict().premises
    assert len(there) > 30 and there <= shown.keys()
    assert shown["scoring.sliding_window"] == settings["scoring"]["sliding_window"]
    assert len(prover.verdict(config_path=prover.expected).premises) < len(shown)


def test_a_checkpoint_that_gives_another_message_is_refused(prover):
    """Any w would do for the val loss before quantization, if only the loss were compared."""
    path = prover.path / "best_ckpt.pt"
    verdict = prover.verdict()
    assert verdict.verified and "the checkpoint encodes to the message" in {check.name for check in verdict.checks}
    loaded = checkpoint.load(path)
    loaded["raw_model"]["subspace_params"] = torch.zeros_like(loaded["raw_model"]["subspace_params"])
    checkpoint.save(path, loaded)
    prover.refused("the checkpoint encodes to the message")
    for damage in ({"raw_model": []}, {"base_sha256": 3}, {"raw_model": {"subspace_params": torch.zeros(3)}}):
        checkpoint.save(path, loaded | damage)
        assert "best_ckpt.pt: " in complaint(prover.verdict)


def test_without_a_checkpoint_the_loss_before_quantization_is_listed_as_unchecked(prover):
    (prover.path / "best_ckpt.pt").unlink()
    claimed = prover.claim()["val_loss_unquantized_bits"]
    prover.edit_claim(lambda record: record.update(val_loss_unquantized_bits=claimed))
    verdict = prover.verdict()
    assert verdict.verified and verdict.unchecked["val_loss_unquantized_bits (no checkpoint here)"] == claimed


def test_tensors_in_place_of_published_numbers_are_refused(prover):
    numbers = checkpoint.load(prover.path / "bounds_metrics.pt")
    checkpoint.save(prover.path / "bounds_metrics.pt", numbers | {"bound_value": torch.zeros(2)})
    prover.refused("bounds_metrics.pt says what bounds.json says")
