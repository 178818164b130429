"""Small corpora and settings for the tests of sublora.data."""

import json
from pathlib import Path
from typing import Any

from sublora import config

FOLDER = "texts"


def folder_data(**changes: Any) -> config.Data:
    """Settings of a folder corpus in {root}/texts, bytes, 2 val and 3 test documents."""
    values: dict[str, Any] = {
        "name": "sample",
        "corpus": config.FolderCorpus(kind="folder", path=FOLDER, text_field="text", unit_field=None),
        "unit": "document",
        "tokenizer": "bytes",
        "min_characters": 1,
        "max_characters": None,
        "min_tokens": 1,
        "val_documents": 2,
        "test_documents": 3,
        "shuffle_seed": 7,
        "workers": 1,
        "near_duplicates": False,
    }
    return config.Data(**(values | changes))


def markov_corpus(**changes: Any) -> config.MarkovCorpus:
    values = {"symbols": 4, "concentration": 0.5, "documents": 50, "min_length": 200, "max_length": 300, "seed": 3}
    return config.MarkovCorpus(kind="markov", **(values | changes))


def write_documents(root: Path, documents: list[str], name: str = "all.jsonl") -> None:
    """A .jsonl file of documents in the folder of `folder_data`."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    lines = (json.dumps({"text": document}) + "\n" for document in documents)
    (folder / name).write_text("".join(lines), encoding="utf-8")
