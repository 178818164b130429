"""Documents of a wheel's JSON files: tags out, each text once, without those of an earlier wheel, grouped by source."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from sublora import config
from sublora.data.corpora import open_reader
from sublora.data.corpora.json_documentation import plain_text
from sublora.data.prepare import prepare_dataset
from sublora.system.errors import UserError

TREE = {
    "documentation": "<p>Top &amp; first</p>",
    "shapes": {
        "A": {"documentation": "<p>Shared  <code>text</code></p>", "members": [{"documentation": "<b>deep</b>er"}]},
        "B": {"documentation": {"documentation": "a text under a key of the same name"}, "other": "not a document"},
    },
}


def write_wheel(path: Path, members: dict[str, object]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            data = json.dumps(value).encode()
            archive.writestr(name, gzip.compress(data) if name.endswith(".gz") else data)


def corpus(**changes: object) -> config.JsonDocumentationCorpus:
    values = {
        "kind": "json_documentation",
        "wheel": "new.whl",
        "without": None,
        "pattern": "data/*.json*",
        "key": "documentation",
        "source_depth": 2,
    }
    return config.JsonDocumentationCorpus.model_validate(values | changes)


def documents(root: Path, settings: config.JsonDocumentationCorpus) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for batch in open_reader(settings, root).batches():
        texts = batch.read()
        found += zip(texts.documents, texts.sources or [], strict=True)
    return found


def test_every_text_under_the_key_is_found_once_in_the_order_of_the_files(tmp_path: Path) -> None:
    write_wheel(tmp_path / "new.whl", {"data/b/x.json": TREE, "data/a/y.json.gz": TREE, "data/a/z.txt": TREE})
    assert documents(tmp_path, corpus()) == [
        ("Top & first", "data/a"),
        ("Shared text", "data/a"),
        ("deeper", "data/a"),
        ("a text under a key of the same name", "data/a"),
    ]


def test_texts_of_an_earlier_wheel_are_left_out_whatever_their_markup(tmp_path: Path) -> None:
    write_wheel(tmp_path / "new.whl", {"data/a/x.json": TREE})
    write_wheel(tmp_path / "old.whl", {"data/other/x.json": {"documentation": "<i>Shared</i> text"}})
    kept = [text for text, _ in documents(tmp_path, corpus(without="old.whl"))]
    assert kept == ["Top & first", "deeper", "a text under a key of the same name"]


def test_sources_group_the_documents(tmp_path: Path) -> None:
    members = {
        f"data/{name}/x.json": [{"documentation": f"{name} says {i} in some more words"} for i in range(6)]
        for name in "abcdef"
    }
    write_wheel(tmp_path / "new.whl", members)
    values = {
        "name": "docs",
        "corpus": corpus(),
        "unit": "source",
        "tokenizer": "bytes",
        "min_characters": 1,
        "max_characters": None,
        "min_tokens": 1,
        "val_documents": 4,
        "test_documents": 4,
        "shuffle_seed": 1,
        "workers": 1,
        "near_duplicates": False,
    }
    meta = json.loads((prepare_dataset(config.Data.model_validate(values), tmp_path) / "meta.json").read_text())
    assert [meta["splits"][split]["units"] for split in ("train", "val", "test")] == [4, 1, 1]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("plain", "plain"),
        ("<p>one</p> <p>two</p>", "one two"),
        ("1 &lt; 2 &#38; 3", "1 < 2 & 3"),
        ("<a href='x>y'>link</a>\n\n next", "link next"),
        ("2 < 3", "2 < 3"),
    ],
)
def test_markup_becomes_plain_text(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@pytest.mark.parametrize("damage", ["missing", "no zip", "no match", "bad member"])
def test_what_cannot_be_read_stops_with_one_line(damage: str, tmp_path: Path) -> None:
    path, settings = tmp_path / "new.whl", corpus()
    if damage == "no zip":
        path.write_bytes(b"no archive")
    if damage == "no match":
        write_wheel(path, {"elsewhere/x.json": TREE})
    if damage == "bad member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/a/x.json.gz", b"no gzip")
    expected = {
        "missing": "no such wheel; download it",
        "no zip": "not a readable wheel",
        "no match": "fits no file in",
        "bad member": "not readable JSON",
    }
    with pytest.raises(UserError, match=expected[damage]) as caught:
        documents(tmp_path, settings)
    assert "\n" not in str(caught.value)
