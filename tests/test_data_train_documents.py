"""data.train_documents: n at will, from nested documents, with val and test as they are."""

import json

import numpy as np
import pytest
from conftest import TINY, TRAINED, demo_values, merged, write_settings
from data_samples import folder_data, write_documents
from pydantic import ValidationError
from test_data_units import expected_units, grouped_data, sample_rows, units_of, write_authors

from sublora import config
from sublora.config.marks import charged_keys, claim_settings
from sublora.data.base_and_target import base_data
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import META_FILE, SPLITS
from sublora.data.prepare import prepare_dataset
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.verify import verify_claim
from sublora.system.errors import UserError
from sublora.tools.expected_bound import known_data
from sublora.tools.plan import scored_count

TEXTS = [f"text {i} " + "x" * (i % 7) for i in range(60)]


def prepared(root, data):
    prepare_dataset(data, root)
    return TokenDataset.open(root, data)


def texts_of(dataset):
    """{split: its texts in their order}"""
    return {
        split: [
            dataset.document(split, i).astype(np.uint8).tobytes() for i in range(len(dataset.document_lengths(split)))
        ]
        for split in SPLITS
    }


def test_few_documents_are_among_more_and_val_and_test_stay(tmp_path):
    write_documents(tmp_path, TEXTS)
    whole = prepared(tmp_path, folder_data(name="whole"))
    texts, hashes = texts_of(whole), {whole.data_hash}
    for n in (1, 10, 40, whole.n_units):
        few = prepared(tmp_path, folder_data(name=f"few{n}", train_documents=n))
        found = texts_of(few)
        assert few.n_units == few.n_documents == len(found["train"]) == n
        # In the order of the split, which is that of a keyed hash: 10 are the first of 40.
        assert found == texts | {"train": texts["train"][:n]}
        counts = few.meta.documents
        assert counts["beyond_train_documents"] == whole.n_units - n and counts["duplicates"] == 0
        hashes.add(few.data_hash)
        few.verify_hashes()
    # All of them by number are the documents that there are without the key.
    assert len(hashes) == 4
    assert "20 beyond data.train_documents" in prepared(tmp_path, folder_data(train_documents=35)).in_words()


def test_duplicates_and_the_base_texts_are_counted_as_without_the_key(tmp_path):
    write_documents(tmp_path, [*TEXTS, *TEXTS[:9]])
    few = prepared(tmp_path, folder_data(train_documents=20))
    assert few.meta.documents["duplicates"] == 9
    assert few.meta.documents["kept"] == 25 and few.meta.documents["beyond_train_documents"] == 35


@pytest.mark.parametrize("n", [1, 7, 25])
def test_units_are_counted_and_taken_whole(tmp_path, n):
    """Units of train are the first n of the split's order, whatever their sizes."""
    rows = sample_rows()
    write_authors(tmp_path, rows)
    data = grouped_data(shuffle_seed=1, train_documents=n)
    dataset = prepared(tmp_path, data)
    expected = expected_units(rows, 1, 12, 15)
    assert units_of(dataset) == expected | {"train": expected["train"][:n]}
    assert dataset.n_units == n and dataset.n_documents == sum(map(len, expected["train"][:n]))


@pytest.mark.parametrize(("unit", "kind"), [("document", "documents"), ("source", "sources")])
def test_more_than_there_are_is_refused_and_nothing_is_touched(tmp_path, unit, kind):
    write_authors(tmp_path, sample_rows())
    corpus = grouped_data().corpus if unit == "source" else folder_data().corpus
    data = grouped_data(unit=unit, corpus=corpus)
    before = prepared(tmp_path, data)
    left = before.n_units
    with pytest.raises(UserError, match=rf"train_documents {left + 1}: {left} {kind} are left to train on .*lower"):
        prepare_dataset(data.model_copy(update={"train_documents": left + 1}), tmp_path)
    assert TokenDataset.open(tmp_path, data).data_hash == before.data_hash
    assert prepared(tmp_path, data.model_copy(update={"train_documents": left})).n_units == left


def test_files_of_another_number_are_refused(tmp_path):
    write_documents(tmp_path, TEXTS)
    few = folder_data(train_documents=20)
    folder = prepare_dataset(few, tmp_path)
    for other in (folder_data(), folder_data(train_documents=21)):
        with pytest.raises(UserError, match=r"made with data.train_documents 20, the settings say (null|21)"):
            TokenDataset.open(tmp_path, other)
    # Files of 20 documents that are said to be 21.
    meta = json.loads((folder / META_FILE).read_text())
    meta["settings"]["train_documents"] = 21
    (folder / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="20 documents to train on, expected data.train_documents 21"):
        TokenDataset.open(tmp_path, folder_data(train_documents=21))


def test_settings_without_the_key_are_what_they_were():
    """No digest, settings file or certificate changes for it, and a number of documents that was picked is charged."""
    values = merged(demo_values(), TINY)
    plain = config.parse_settings(values, source="test")
    capped = config.parse_settings(merged(values, {"data": {"train_documents": 200}}), source="test")
    assert "train_documents" not in config.data_settings(plain)
    assert "train_documents" not in config.settings_text(plain)
    assert "train_documents" not in json.dumps(plain.model_dump(mode="json"))
    for stage in ("data", "train"):
        assert "train_documents" not in str(config.stage_settings(plain, stage))
        assert config.stage_settings(capped, stage)["data"]["train_documents"] == 200
    assert "data.train_documents" in charged_keys()
    assert capped.data.model_dump()["train_documents"] == 200
    found = [claim_settings(settings)["data.train_documents"] for settings in (plain, capped)]
    assert found == [None, 200]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train_documents": 49}}, "scoring.documents 50 exceeds data.train_documents 49"),
        ({"data": {"train_documents": 0}}, "data.train_documents: input should be greater than 0"),
        ({"data": {"train_documents": "all"}}, "data.train_documents: input should be a valid integer"),
    ],
)
def test_numbers_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        config.parse_settings(merged(merged(demo_values(), TINY), changes), source="test")


def test_sources_of_some_documents_are_no_sample_of_sources():
    values = merged(demo_values(), {"data": {"train_documents": 1000}})
    with pytest.raises(UserError, match=r"scoring.sources 200: of a source only some documents .* set scoring.sources"):
        config.parse_settings(values, source="test")
    assert config.parse_settings(merged(values, {"scoring": {"sources": None}}), source="test")


def test_the_corpus_of_the_base_is_not_cut():
    values = merged(merged(demo_values(), TINY), {"data": {"train_documents": 100}}) | {"base": TRAINED}
    assert base_data(config.parse_settings(values, source="test")).train_documents is None
    with pytest.raises(ValidationError, match="train_documents"):
        config.TrainedBase.model_validate(TRAINED | {"train_documents": 100})


def test_plan_knows_n_before_the_documents_are_prepared(tmp_path):
    values = merged(demo_values(), {"data": {"train_documents": 1000}, "scoring": {"sources": None}})
    settings = config.parse_settings(values, source="test")
    assert known_data(settings, tmp_path, None).n_units == 1000
    assert known_data(settings, tmp_path, 300).n_units == 300
    every = settings.model_copy(update={"scoring": settings.scoring.model_copy(update={"documents": "all"})})
    assert [scored_count(each, None) for each in (settings, every)] == [400, 1000]


def test_a_run_on_few_documents_is_bounded_and_verified_with_their_number(tmp_path):
    changes = {"data": {"train_documents": 60}, "scoring": {"documents": "all"}}
    path = write_settings(tmp_path, changes)
    settings = config.load_settings(path)
    prepare_dataset(settings.data, tmp_path)
    spec = settings.grid.runs()[0]
    out = tmp_path / "results/runs" / spec.name
    train_run(settings, spec, root=tmp_path, out=out)
    score_run(out, config_path=path)
    record = json.loads(bound_run(out, config_path=path).read_text())
    assert record["n_units"] == record["m_units"] == 60
    verdict = verify_claim(Claim.of(out, root=tmp_path), Options(config_path=path))
    assert verdict.verified, verdict.wrong
