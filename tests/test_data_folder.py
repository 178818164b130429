"""Folders of documents as people have them: what is read, what is named, and which sources documents have."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_samples import folder_data

from sublora import config
from sublora.data.corpora import folder as module
from sublora.data.corpora import open_reader
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.system.errors import UserError


def folder(path: object = "texts", field: str = "text", unit: str | None = None) -> config.FolderCorpus:
    return config.FolderCorpus(kind="folder", path=str(path), text_field=field, unit_field=unit)


def read(root: Path, **changes: Any) -> list[str]:
    return [text for batch in open_reader(folder(**changes), root).batches() for text in batch.read().documents]


def sources(root: Path, **changes: Any) -> list[str | None]:
    found: list[str | None] = []
    for batch in open_reader(folder(**changes), root).batches():
        texts = batch.read()
        found += texts.sources or [None] * len(texts.documents)
    return found


def lines(*documents: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def parquet(rows: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(rows), sink)
    return sink.getvalue()


def zstandard(data: bytes) -> bytes:
    """Two frames, as `cat a.zst b.zst` makes them."""
    import pyarrow

    half = len(data) // 2
    return b"".join(pyarrow.Codec("zstd").compress(part, asbytes=True) for part in (data[:half], data[half:]))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "b").mkdir(parents=True)
    return tmp_path / "texts"


def test_text_files_are_read_whole_and_jsonl_by_line(texts: Path, tmp_path: Path) -> None:
    (texts / "b" / "two.txt").write_bytes(b"line\r\nline\n")
    (texts / "one.txt").write_bytes("é".encode())
    (texts / "many.jsonl").write_text('{"text": "first", "id": 1}\n\n{"text": "sec\\nond"}', encoding="utf-8")
    (texts / ".hidden").mkdir()
    (texts / ".hidden" / "draft.txt").write_text("draft")
    assert read(tmp_path) == ["line\r\nline\n", "first", "sec\nond", "é"]
    assert open_reader(folder(), tmp_path).provenance() == {"files": 3, "bytes": 11 + 2 + 48}
    assert read(Path("/elsewhere"), path=texts) == read(tmp_path)


KINDS: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: lines("one", "two"),
    "a.JSONL": lambda: lines("one", "two"),
    "a.ndjson": lambda: lines("one", "two"),
    "a.jsonl.gz": lambda: gzip.compress(lines("one")) + gzip.compress(lines("two")),
    "a.ndjson.GZ": lambda: gzip.compress(lines("one", "two")),
    "a.jsonl.bz2": lambda: bz2.compress(lines("one", "two")),
    "a.jsonl.xz": lambda: lzma.compress(lines("one", "two")),
    "a.jsonl.zst": lambda: zstandard(lines("one", "two")),
    "a.csv": lambda: b"id,text\r\n1,one\r\n\r\n2,two\r\n",
    "a.csv.gz": lambda: gzip.compress(b'text\n"one"\ntwo\n', mtime=0),
    "a.parquet": lambda: parquet({"id": [1, 2], "text": ["one", "two"]}),
    "a.Parquet": lambda: parquet({"text": ["one", "two"]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read(name: str, texts: Path, tmp_path: Path, capsys: Any) -> None:
    """Half the documents were left out without a word where .jsonl.gz lay beside .jsonl."""
    (texts / name).write_bytes(KINDS[name]())
    (texts / "b" / "three.TXT.gz").write_bytes(gzip.compress(b"three", mtime=0))
    (texts / "b" / "four.Txt").write_bytes(b"four")
    assert sorted(read(tmp_path)) == ["four", "one", "three", "two"]
    assert capsys.readouterr().err == ""


def test_a_quoted_cell_holds_lines_and_commas(texts: Path, tmp_path: Path) -> None:
    with open(texts / "a.csv", "w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([["text", "n"], ['a "b",\nc', 1], ["x" * 200_000, 2]])
    assert read(tmp_path) == ['a "b",\nc', "x" * 200_000]


def test_what_is_not_read_is_named(texts: Path, tmp_path: Path, capsys: Any) -> None:
    (texts / "a.txt").write_text("a text")
    for name in ("2025.json", "paper.pdf", "x.parquet.gz", "README"):
        (texts / name).write_bytes(b"{}")
    (texts / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    assert read(tmp_path) == ["a text"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "not read: 5 of 6 files" in line
    assert "(2025.json, README, gone.txt, paper.pdf, x.parquet.gz)" in line


def test_a_folder_without_text_says_what_it_found(texts: Path, tmp_path: Path) -> None:
    (texts / "b" / "paper.pdf").write_bytes(b"")
    (texts / "train.json").write_text("[]")
    with pytest.raises(UserError, match=r"no .txt or .jsonl file in folder .*texts.*\(b/paper.pdf, train.json\)"):
        open_reader(folder(), tmp_path)
    with pytest.raises(UserError, match=r"data.corpus.path: .*/absent does not exist; relative paths start at"):
        open_reader(folder("absent"), tmp_path)
    with pytest.raises(
        UserError, match=r"texts/b/paper.pdf is no text file that can be read, expected one of .txt, .jso"
    ):
        open_reader(folder("texts/b/paper.pdf"), tmp_path)


def test_one_file_takes_the_place_of_a_folder(texts: Path, tmp_path: Path) -> None:
    """Its neighbours are not read, and a .txt file has the name that it has in its folder as its source."""
    (texts / "one.jsonl").write_text('{"text": "a line"}\n{"text": "another"}')
    (texts / "b" / "two.txt").write_text("two")
    reader = open_reader(folder("texts/one.jsonl"), tmp_path)
    assert [text for batch in reader.batches() for text in batch.read().documents] == ["a line", "another"]
    assert reader.provenance()["files"] == 1 and reader.where == f"file {texts / 'one.jsonl'}"
    (batch,) = open_reader(folder("texts/b/two.txt"), tmp_path).batches()
    assert batch.read().sources == ["file two.txt"]


def test_linked_folders_are_read_once(texts: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (elsewhere / "far.txt").write_text("far")
    (texts / "b" / "near.txt").write_text("near")
    (texts / "2024").symlink_to(tmp_path / "elsewhere")
    (texts / "a_again").symlink_to(texts / "b")  # sorts before what it points to
    (elsewhere / "up").symlink_to(texts)  # a circle
    assert sorted(read(tmp_path)) == ["far", "near"]
    assert sorted(map(str, sources(tmp_path))) == ["file 2024/deep/far.txt", "file b/near.txt"]


def test_byte_order_marks_are_no_text(texts: Path, tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (texts / "a.txt").write_bytes(mark + b"one")
    (texts / "b.jsonl").write_bytes(mark + lines("two") + mark + lines("three"))
    (texts / "c.csv").write_bytes(mark + b"text\nfour\n")
    assert read(tmp_path) == ["one", "two", "three", "four"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_unit_may_be_a_whole_number(kind: str, texts: Path, tmp_path: Path) -> None:
    if kind == "parquet":
        (texts / "a.parquet").write_bytes(parquet({"text": ["a", "b", "c"], "who": [7, 7, 8]}))
    elif kind == "csv":
        (texts / "a.csv").write_bytes(b"text,who\na,7\nb,7\nc,8\n")
    else:
        rows = [{"text": "a", "who": 7}, {"text": "b", "who": "7"}, {"text": "c", "who": 8}]
        (texts / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert sources(tmp_path, unit="who") == ["unit 7", "unit 7", "unit 8"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\xff", "a.txt: not UTF-8 at byte 2; convert"),
        ("a.txt", "Ticket".encode("utf-16-le"), "a.txt: holds the character NUL (at 1), so it is UTF-16 without"),
        ("a.txt", "Ticket".encode("utf-16"), "a.txt: not UTF-8 at byte 0"),
        ("a.txt", POINTER, "a.txt: a pointer of Git LFS and not the file itself"),
        ("a.parquet", POINTER, "a.parquet: a pointer of Git LFS"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'"x"', "a.jsonl, line 1: expected a JSON object, found str"),
        ("a.jsonl", b'{"body": "x", "id": 1}', "line 1: no key 'text', found 'body', 'id'; fix data.corpus.text_fi"),
        ("a.jsonl", b'{"text": 3}', "line 1: key 'text' holds int, expected text"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1: not UTF-8 at byte 10"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "\xff"}', mtime=0), "a.jsonl.gz, line 1: not UTF-8 at byte 10"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: damaged (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(lines("some text"), mtime=0)[:-9], "a.jsonl.gz: damaged (Compressed file ended"),
        ("a.txt.bz2", b"plain", "a.txt.bz2: damaged ("),
        ("a.txt.xz", b"plain", "a.txt.xz: damaged ("),
        ("a.txt.zst", b"plain", "a.txt.zst: damaged ("),
        ("a.csv", b"id,body\n1,x\n", "a.csv, line 2: no column 'text', found 'id', 'body'; fix data.corpus.text_field"),
        ("a.csv", b"text\na,b\n", "a.csv, line 2: 2 cells, expected 1 as in the header"),
        ("a.csv", b'text\n"a"b\n', "a.csv, line 2: not valid CSV"),
        ("a.csv", b"text\n\xff\n", "a.csv: not UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet: damaged ("),
        (
            "a.parquet",
            parquet({"body": ["x"]}),
            "a.parquet: no column 'text', found 'body'; fix data.corpus.text_field",
        ),
        ("a.parquet", parquet({"text": ["x", None]}), "a.parquet, row 2: column 'text' holds NoneType, expected text"),
    ],
)
def test_the_file_and_the_line_that_is_wrong_are_named(
    name: str, content: bytes, message: str, texts: Path, tmp_path: Path
) -> None:
    (texts / name).write_bytes(content)
    with pytest.raises(UserError, match="^[^\n]*$") as caught:
        read(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["7.0", "true", "null", '["x"]'])
def test_a_unit_that_names_nothing_is_refused(value: str, texts: Path, tmp_path: Path) -> None:
    (texts / "a.jsonl").write_text(f'{{"text": "x", "who": {value}}}')
    with pytest.raises(UserError, match="key 'who' holds .*, expected text or a whole number"):
        read(tmp_path, unit="who")


def test_a_bomb_is_not_unpacked(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_BYTES", 1000)
    for name, data in (
        ("a.txt.gz", b"x" * 10**6),
        ("a.jsonl.gz", lines("x" * 10**6)),
        ("a.csv.gz", b"text\n" + b"x" * 10**6),
    ):
        (texts / name).write_bytes(gzip.compress(data, mtime=0))
        with pytest.raises(UserError, match="more than 1,000 bytes|field larger than field limit"):
            read(tmp_path)
        (texts / name).unlink()


def test_the_same_documents_in_other_files_are_the_same_data(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(20)]
    hashes = set()
    for name, data in (
        ("a.jsonl", lines(*documents)),
        ("a.jsonl.zst", zstandard(lines(*documents))),
        ("a.csv", "\n".join(["text", *documents]).encode()),
        ("a.parquet", parquet({"text": documents})),
    ):
        root = tmp_path / name
        (root / "texts").mkdir(parents=True)
        (root / "texts" / name).write_bytes(data)
        prepare_dataset(folder_data(), root)
        hashes.add(TokenDataset.open(root, folder_data()).data_hash)
    assert len(hashes) == 1
