"""Near duplicates: shingles by definition, exact shares, clusters, and the sensitivity of a bound."""

import json
import sys

import numpy as np
import pytest
from attacks import honest_runs
from data_samples import folder_data, write_documents
from hypothesis import given
from hypothesis import strategies as st

from sublora import config
from sublora.analysis.report.facts import near_duplicates_sentence
from sublora.data.dataset import TokenDataset
from sublora.data.near_duplicates import (
    MOST_IN_BUCKET,
    SHINGLE_BYTES,
    ClusterRule,
    FirstDocuments,
    cluster,
    shared_shares,
    shingles,
)
from sublora.data.prepare import prepare_dataset
from sublora.runs.losses_file import read_losses
from sublora.runs.message import read_message
from sublora.system.errors import UserError
from sublora.tools.duplicates import bound_with, write_document_facts, write_near_duplicates


def runs_of_bytes(text: bytes) -> set[bytes]:
    """The definition."""
    text = text.ljust(SHINGLE_BYTES, b"\0")
    return {text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)}


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=80))
def test_shingles_are_equal_where_runs_of_bytes_are(left, right, shared):
    first, second = left + shared, shared + right
    found = [shingles(text) for text in (first, second)]
    wanted = [runs_of_bytes(text) for text in (first, second)]
    assert [len(each) for each in found] == [len(each) for each in wanted]
    assert all((np.diff(each.astype(object)) > 0).all() for each in found)
    assert len(np.intersect1d(*found)) == len(wanted[0] & wanted[1])


def test_texts_of_few_different_bytes_are_told_apart():
    """Thue and Morse's word and its complement defeat polynomial hashes of one byte each modulo 2^64."""
    word = bytes(bin(i).count("1") % 2 for i in range(4096))
    assert len(shingles(word)) == len(runs_of_bytes(word))


def text_of(seed: int, length: int = 400) -> str:
    return bytes(np.random.default_rng(seed).integers(97, 123, length, dtype=np.uint8)).decode()


@pytest.fixture
def dataset(tmp_path) -> TokenDataset:
    """Sixty texts, of thirty of them two near copies each, and of one thirty more."""
    texts = [text_of(i) for i in range(60)]
    texts += [f"{text[:200]}{mark}{text[200:]}" for text in texts[:30] for mark in "AB"]
    texts += [f"{texts[0]}{mark}" for mark in range(30)]
    write_documents(tmp_path, texts)
    data = folder_data(val_documents=5, test_documents=20)
    prepare_dataset(data, tmp_path)
    return TokenDataset.open(tmp_path, data)


def test_shares_are_those_of_all_runs_of_bytes(dataset):
    def texts(split):
        documents = (dataset.document(split, i) for i in range(len(dataset.document_lengths(split))))
        return [runs_of_bytes(document.astype(np.uint8).tobytes()) for document in documents]

    train = set().union(*texts("train"))
    expected = [len(text & train) / len(text) for text in texts("test")]
    np.testing.assert_allclose(shared_shares(dataset), expected, rtol=1e-12)
    assert min(expected) == 0.0 and max(expected) > 0.9


def test_clusters_are_the_texts_that_differ(dataset):
    """A near copy shares some 84 % of its shingles with its text; other texts none."""
    prefixes = [bytes(dataset.document("train", i)[:50].astype(np.uint8)) for i in range(dataset.n_documents)]
    found = cluster(dataset, ClusterRule())
    assert found.documents == dataset.n_documents
    assert found.count == len(set(prefixes))
    assert found.largest == max(map(prefixes.count, prefixes))
    assert cluster(dataset, ClusterRule()) == found
    assert cluster(dataset, ClusterRule(jaccard=0.999)).count > 1.5 * found.count
    assert cluster(dataset, ClusterRule(documents=10)).documents == 10


def test_documents_of_one_template_are_compared_with_few_others():
    """They agree in a third of the bands; near duplicates are told apart by the others, which few documents share."""
    rule, random = ClusterRule(), np.random.default_rng(0)
    signatures = random.integers(0, 2**32, size=(5 * MOST_IN_BUCKET, rule.permutations), dtype=np.uint64)
    signatures[:, : rule.permutations // 3] = signatures[0, : rule.permutations // 3]
    documents = FirstDocuments(rule)
    assert [documents.find_or_add(signature) for signature in signatures] == [None] * len(signatures)
    assert max(len(places) for bucket in documents.buckets for places in bucket.values()) == MOST_IN_BUCKET
    for place in (0, MOST_IN_BUCKET, len(signatures) - 1):
        copy = signatures[place].copy()
        copy[::10] = random.integers(0, 2**32, size=len(copy[::10]))
        assert documents.find_or_add(copy) == place


def test_the_earliest_of_equally_similar_documents_is_joined():
    rule, random = ClusterRule(), np.random.default_rng(0)
    first, second = random.integers(0, 2**32, size=(2, rule.permutations), dtype=np.uint64)
    documents = FirstDocuments(rule)
    assert documents.find_or_add(first) is documents.find_or_add(second) is None
    half = np.concatenate([first[: len(first) // 2], second[len(first) // 2 :]])
    assert documents.find_or_add(half) == 0


def test_without_the_library_one_line_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'sublora\[duplicates\]'"):
        cluster(dataset, ClusterRule())


@pytest.fixture(scope="module")
def measured(honest_root, tmp_path_factory):
    """results/near_duplicates.json of the tiny data, which has none, beside finished runs."""
    root = honest_runs(honest_root, tmp_path_factory.mktemp("measured") / "root")
    return root, write_near_duplicates(config.load_settings(root / "config/config.yaml"), root=root)


def test_the_file_holds_the_bounds_of_every_finished_run(measured):
    root, path = measured
    facts = json.loads(path.read_text())
    assert facts["n_documents"] == facts["clustered_documents"] == 240 and facts["clusters"] <= 240
    for folder in (root / "results/runs").iterdir():
        claim, bounds = json.loads((folder / "bounds.json").read_text()), facts["runs"][folder.name]
        assert bounds["bound_value"] == pytest.approx(claim["bound_value"], abs=1e-12)
        assert bounds["bound_value"] <= bounds["bound_value_by_clusters"]
    assert facts["data_hash"] == claim["data_hash"]


def test_documents_are_measured_once_for_each_data_set(measured, monkeypatch):
    """What is known of the documents is read again; a damaged file, another rule or other data are measured."""
    root, path = measured
    settings = config.load_settings(root / "config/config.yaml")
    known = root / "data" / settings.data.name / "near_duplicates.json"
    contents, results = known.read_text(), json.loads(path.read_text())
    assert json.loads(contents) == {key: value for key, value in results.items() if key != "runs"}
    measured_again = []
    monkeypatch.setattr("sublora.tools.duplicates.measure_documents", lambda *_: measured_again.append(1) or {})
    assert write_document_facts(settings, root=root) == known and not measured_again
    others = (contents[:-20], "[]", contents.replace(results["data_hash"], "0" * 64))
    for text in others:
        known.write_text(text)
        write_document_facts(settings, root=root)
    known.write_text(contents)
    write_document_facts(settings, root=root, rule=ClusterRule(jaccard=0.9))
    assert len(measured_again) == len(others) + 1
    known.write_text(contents)


def test_fewer_documents_give_larger_bounds(measured):
    folder = next((measured[0] / "results/runs").iterdir())
    message = read_message(folder / "certificate.bin")
    losses = read_losses(folder / "losses.npz").of(message)
    bounds = [bound_with(message, losses, n) for n in (240_000, 24_000, 2400, 240)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1]


def test_the_report_s_sentence(measured, tmp_path):
    path = measured[1]
    facts = json.loads(path.read_text())
    name, bounds = next(iter(facts["runs"].items()))
    row = {"name": name, "data_hash": facts["data_hash"], "bound_value": bounds["bound_value"]}
    sentence = near_duplicates_sentence(path, row)
    assert f"{facts['n_clusters']} clusters" in sentence and "not a certificate" in sentence
    with pytest.raises(UserError, match="of data"):
        near_duplicates_sentence(path, row | {"data_hash": "0" * 64})
    # A run that was not there, and one that was scored again since.
    for change in ({"name": "other"}, {"bound_value": row["bound_value"] + 0.001}):
        with pytest.raises(UserError, match="written before run"):
            near_duplicates_sentence(path, row | change)
    for text in ("{", "[]", json.dumps(facts | {"format": 0})):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(UserError, match="file.json: not"):
            near_duplicates_sentence(tmp_path / "file.json", row)
