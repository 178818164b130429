"""Documents in units: kept whole by prepare, counted, drawn and averaged as units."""

import json

import numpy as np
import pytest
from data_samples import folder_data, write_documents
from pydantic import ValidationError

from sublora import config
from sublora.data import order as order_module
from sublora.data.corpora.python_sources import source_files
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import FILES, META_FILE, SPLITS, UNIT_FILES
from sublora.data.order import document_key, source_key, unit_key
from sublora.data.prepare import prepare_dataset
from sublora.data.units import Units
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.system.versions import UNITS_VERSION
from sublora.yardsticks.targets import target_shares

WITH_AUTHORS = config.FolderCorpus(kind="folder", path="texts", text_field="text", unit_field="author")


def grouped_data(**changes):
    return folder_data(
        **({"corpus": WITH_AUTHORS, "unit": "source", "val_documents": 12, "test_documents": 15} | changes)
    )


def write_authors(root, rows, name="all.jsonl"):
    (root / "texts").mkdir(exist_ok=True)
    lines = (json.dumps({"text": text, "author": author}) + "\n" for author, text in rows)
    (root / "texts" / name).write_text("".join(lines), encoding="utf-8")


def sample_rows(authors=40, seed=1):
    """(author, text): 1 to 12 texts each, every fifth text one that many authors have."""
    rng = generator("authors", seed)
    rows = []
    for author in range(authors):
        for i in range(rng.integers(1, 13)):
            text = f"shared {rng.integers(6)}" if i % 5 == 4 else f"text {i} of {author} " + "x" * int(rng.integers(30))
            rows.append((f"author {author}", text))
    return rows


def units_of(dataset):
    """{split: [texts of a unit]}"""
    found = {}
    for split in SPLITS:
        units = dataset.units(split)
        found[split] = []
        for u in range(len(units)):
            documents_D, _ = units.take(np.array([u]))
            found[split].append(
                [dataset.document(split, int(i)).astype(np.uint8).tobytes().decode() for i in documents_D]
            )
    return found


def expected_units(rows, seed, val, test):
    """By brute force: first author of each text by one key, authors in the order of another, whole until enough."""
    owner = {}
    for author, text in rows:
        key = source_key(f"unit {author}", seed)
        owner[text] = min(owner.get(text, key), key)
    units = {}
    for text in sorted(owner, key=lambda text: document_key(text.encode(), seed)):
        units.setdefault(owner[text], []).append(text)
    found = {split: [] for split in SPLITS}
    wanted = {"val": val, "test": test}
    for key in sorted(units, key=lambda source: unit_key(source, seed)):
        split = next((name for name, count in wanted.items() if sum(map(len, found[name])) < count), "train")
        found[split].append(units[key])
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_units_are_whole_neighbours_and_in_one_split(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(order_module, "BUFFER_BYTES", 300)
    rows = sample_rows(seed=seed)
    write_authors(tmp_path, rows)
    data = grouped_data(shuffle_seed=seed)
    prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    found = units_of(dataset)
    assert found == expected_units(rows, seed, 12, 15)
    texts = [text for split in SPLITS for unit in found[split] for text in unit]
    assert sorted(texts) == sorted({text for _, text in rows})
    assert sum(map(len, found["val"])) >= 12 > sum(map(len, found["val"][:-1]))
    assert sum(map(len, found["test"])) >= 15 > sum(map(len, found["test"][:-1]))
    assert dataset.n_units == len(found["train"]) < dataset.n_documents
    assert dataset.meta.split("train").units == dataset.n_units
    assert set(dataset.files) == {*FILES, *UNIT_FILES} == set(dataset.meta.files)
    dataset.verify_hashes()


def test_which_author_keeps_a_text_says_nothing_about_the_split(tmp_path):
    """Keys of authors and of their units have no order in common, and documents' keys have none with either."""
    authors = [source_key(f"unit author {i}", 1) for i in range(2000)]
    units = [unit_key(author, 1) for author in authors]
    ranks = np.array([np.argsort(np.argsort(keys)) for keys in (authors, units)])
    assert abs(np.corrcoef(ranks)[0, 1]) < 0.07  # three standard deviations
    assert len({*authors, *units}) == 4000
    assert unit_key(authors[0], 2) != units[0]


def test_units_of_an_earlier_rule_are_refused(tmp_path):
    """They were split by the key that decides who keeps a shared text; documents as units have no such version."""
    write_authors(tmp_path, sample_rows())
    folder = prepare_dataset(grouped_data(), tmp_path)
    meta = json.loads((folder / META_FILE).read_text())
    for found in (None, 1, UNITS_VERSION + 1):
        changed = {key: value for key, value in meta.items() if key != "units_version"}
        (folder / META_FILE).write_text(json.dumps(changed | ({} if found is None else {"units_version": found})))
        with pytest.raises(UserError, match=rf"units_version {found}, expected {UNITS_VERSION}: .* sublora prepare"):
            TokenDataset.open(tmp_path, grouped_data())
    write_documents(tmp_path, [f"text {i}" for i in range(30)])
    folder = prepare_dataset(folder_data(), tmp_path)
    assert "units_version" not in json.loads((folder / META_FILE).read_text())


def test_golden_hash_of_units(tmp_path):
    """If this changes, raise UNITS_VERSION: prepared datasets are no longer reproduced."""
    write_authors(tmp_path, sample_rows())
    prepare_dataset(grouped_data(), tmp_path)
    assert UNITS_VERSION == 2
    assert (
        TokenDataset.open(tmp_path, grouped_data()).data_hash
        == "878e3ca03ee539bd3283166d76dccdebbba6c3134cb5d2a90c876f1a2d76505d"
    )


def test_order_of_the_corpus_and_workers_do_not_matter(tmp_path):
    rows = sample_rows()
    write_authors(tmp_path, rows)
    folder = prepare_dataset(grouped_data(), tmp_path)
    before = {name: (folder / name).read_bytes() for name in (*FILES, *UNIT_FILES)}
    write_authors(tmp_path, [rows[i] for i in generator("order").permutation(len(rows))])
    prepare_dataset(grouped_data(workers=2), tmp_path)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_unit_for_each_document_gives_the_units_of_documents(tmp_path):
    """Grouped by a field that tells all documents apart, each unit is one document, and n is their number."""
    write_authors(tmp_path, [(f"author {i}", f"text {i}") for i in range(60)])
    data = grouped_data()
    prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    assert dataset.n_units == dataset.n_documents == 60 - 12 - 15
    assert (dataset.units("train").sizes_U == 1).all()


def test_the_grouping_is_part_of_the_data_hash(tmp_path):
    rows = [(f"author {i // 3}", f"text {i}") for i in range(60)]
    write_authors(tmp_path, rows)
    prepare_dataset(grouped_data(), tmp_path)
    dataset = TokenDataset.open(tmp_path, grouped_data())
    before, starts = dataset.data_hash, np.array(dataset.units("train").starts_U)
    facts = dataset.meta.files["unit_starts_train.npy"].model_copy(update={"sha256": "0" * 64})
    files = dataset.meta.files | {"unit_starts_train.npy": facts}
    changed = TokenDataset(dataset.folder, dataset.meta.model_copy(update={"files": files}))
    assert changed.data_hash != before and len(starts) < dataset.n_documents


def test_text_files_are_sources_of_their_own_and_lines_need_a_field(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(8):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i}")
    corpus = config.FolderCorpus(kind="folder", path="texts", text_field="text", unit_field=None)
    data = grouped_data(corpus=corpus, val_documents=2, test_documents=2)
    prepare_dataset(data, tmp_path)
    assert TokenDataset.open(tmp_path, data).n_units == 4
    write_documents(tmp_path, ["a line"])
    with pytest.raises(UserError, match="data.unit: source: a document of data.corpus has no source"):
        prepare_dataset(data, tmp_path)
    with pytest.raises(UserError, match="line 1: no key 'author', found 'text'; fix data.corpus.unit_field"):
        prepare_dataset(grouped_data(), tmp_path)


def test_too_few_units_are_refused(tmp_path):
    write_authors(tmp_path, [("one", f"text {i}") for i in range(50)])
    with pytest.raises(UserError, match=r"50 documents are left .* where val and test take whole units \(1 in all\)"):
        prepare_dataset(grouped_data(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "document"}, "unit_field 'author' has no effect with unit: document"),
        (
            {
                "corpus": config.MarkovCorpus(
                    kind="markov", symbols=4, concentration=0.5, documents=50, min_length=200, max_length=300, seed=3
                )
            },
            "documents of a markov corpus are independent",
        ),
        (
            {
                "corpus": config.HuggingFaceCorpus(
                    kind="huggingface", dataset="a", revision="b", split="c", text_field="d", unit_field=None
                )
            },
            "unit: source needs corpus.unit_field",
        ),
        ({"unit": "author"}, "document"),
    ],
)
def test_settings_that_cannot_be_grouped_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        grouped_data(**changes)


@pytest.mark.parametrize(
    "starts", [[0, 3, 3, 9], [1, 3, 9], [0, 9, 3], [0, 3, 10**6], []], ids=["empty", "late", "order", "beyond", "none"]
)
def test_units_that_are_no_partition_are_refused(tmp_path, starts):
    write_authors(tmp_path, sample_rows())
    folder = prepare_dataset(grouped_data(), tmp_path)
    path = folder / "unit_starts_train.npy"
    np.save(path, np.array(starts, dtype=np.int64))
    meta = json.loads((folder / META_FILE).read_text())
    meta["files"][path.name]["bytes"] = path.stat().st_size
    meta["splits"]["train"]["units"] = len(starts)
    (folder / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(UserError, match="unit_starts_train.npy: the units do not partition the"):
        TokenDataset.open(tmp_path, grouped_data())
    meta["splits"]["train"]["units"] = 7
    (folder / META_FILE).write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"expected int64 of shape \(7,\), one entry per unit"):
        TokenDataset.open(tmp_path, grouped_data())


# Sources of packages


def test_sources_of_packages_have_names_without_a_machine_in_them(tmp_path, monkeypatch):
    for name in ("booby/__init__.py", "booby/sub/deep.py", "booby_module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = [file.name for package in ("booby", "booby_module") for file in source_files(package)]
    assert names == ["booby/__init__.py", "booby/sub/deep.py", "booby_module/booby_module.py"]
    assert "stdlib/json/decoder.py" in [file.name for file in source_files("stdlib")]


def test_packages_know_the_source_of_each_training_document(tmp_path, monkeypatch):
    """With documents as units the tokens are what they are without sources, whose numbers lie beside them."""
    for i in range(9):
        path = tmp_path / "booby" / f"m{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"def f{j}():\n    return '{i} {j}'\n" for j in range(i + 1)))
    monkeypatch.syspath_prepend(tmp_path)
    corpus = config.FunctionCorpus(kind="functions", packages=("booby",))
    data = folder_data(corpus=corpus)
    prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    ids = dataset.source_ids
    assert dataset.n_units == dataset.n_documents == 45 - 5 and set(ids) == set(range(ids.max() + 1))
    module_of = [dataset.document("train", i).astype(np.uint8).tobytes().decode().split("'")[1][0] for i in range(40)]
    assert len(set(zip(module_of, ids.tolist(), strict=True))) == len(set(module_of)) == len(set(ids.tolist()))
    grouped = data.model_copy(update={"unit": "source"})
    prepare_dataset(grouped, tmp_path)
    dataset = TokenDataset.open(tmp_path, grouped)
    assert dataset.source_ids is None and dataset.n_units < 9
    for unit in (unit for units in units_of(dataset).values() for unit in units):
        assert len({text.split("'")[1][0] for text in unit}) == 1


# Algebra of units


def sample_units(rng, count=12):
    sizes = rng.integers(1, 6, size=count)
    return Units(int(sizes.sum()), np.concatenate([[0], np.cumsum(sizes)[:-1]]))


def test_means_and_draws_by_brute_force():
    rng = generator("units")
    units = sample_units(rng)
    values_DA = rng.random((units.documents, 3))
    members = [list(range(start, start + size)) for start, size in zip(units.starts_U, units.sizes_U, strict=True)]
    assert sum(members, []) == list(range(units.documents))
    assert units.means(values_DA) == pytest.approx(np.array([values_DA[rows].mean(0) for rows in members]))
    drawn_U = rng.integers(len(units), size=30)
    documents_D, groups = units.take(drawn_U)
    assert documents_D.tolist() == sum((members[u] for u in drawn_U), [])
    assert groups.means(values_DA[documents_D]) == pytest.approx(units.means(values_DA)[drawn_U])
    one_each = units.documents_of(drawn_U, rng)
    assert all(document in members[u] for document, u in zip(one_each, drawn_U, strict=True))
    for slices in (slice(0, 5), slice(3, units.documents + 4)):
        inside = range(units.documents)[slices]
        assert units.size_around(slices).tolist() == [next(len(m) for m in members if i in m) for i in inside]
    with pytest.raises(ValueError, match="values of 3 documents"):
        units.means(values_DA[:3])


def test_leading_units_are_as_few_as_hold_the_documents():
    units = sample_units(generator("leading"))
    ends = np.cumsum(units.sizes_U)
    for documents in range(1, units.documents + 1):
        count = units.leading(documents)
        assert ends[count - 1] >= documents and (count == 1 or ends[count - 2] < documents)
    with pytest.raises(ValueError):
        units.leading(units.documents + 1)
    assert Units(9).leading(4) == 4 and len(Units(9)) == 9


def test_single_documents_are_units_as_they_are():
    units, values = Units(5), np.arange(5.0)
    documents_D, groups = units.take(np.array([3, 3, 1]))
    assert documents_D.tolist() == [3, 3, 1] and len(groups) == 3
    assert units.means(values) is values and units.size_around(slice(0, 5)) == 1
    rng = generator("untouched")
    assert units.documents_of(documents_D, rng) is documents_D
    assert rng.random() == generator("untouched").random()  # nothing was drawn


def test_token_shares_are_means_over_units(tmp_path, monkeypatch):
    """Means over units of the means over their documents; the same if blocks cut documents and units."""
    write_authors(tmp_path, sample_rows())
    prepare_dataset(grouped_data(), tmp_path)
    dataset = TokenDataset.open(tmp_path, grouped_data())
    units, expected = dataset.units("train"), np.zeros(257)
    for u in range(len(units)):
        documents_D, _ = units.take(np.array([u]))
        for i in documents_D:
            targets = np.append(dataset.document("train", int(i)), 256)
            expected += np.bincount(targets, minlength=257) / len(targets) / len(documents_D) / len(units)
    assert target_shares(dataset) == pytest.approx(expected) and expected.sum() == pytest.approx(1.0)
    monkeypatch.setattr("sublora.yardsticks.targets.BLOCK_TOKENS", 7)
    assert target_shares(dataset) == pytest.approx(expected)
