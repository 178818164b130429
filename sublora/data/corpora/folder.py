"""Documents in a folder: each .txt file is a document, and so is each line of a .jsonl file.

The source of a line is the value of `unit_field`, the source of a .txt file is its path in the folder; a line and a
file never have the same source.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sublora import config
from sublora.data.corpora.reader import TextBatch, batch_texts
from sublora.system.errors import UserError

SUFFIXES = (".txt", ".jsonl")
FILE_SOURCE, FIELD_SOURCE = "file ", "unit "
"""Prefixes of the names of the two kinds of sources."""


class FolderReader:
    """Reads .txt and .jsonl files below a folder, in UTF-8; subfolders are included, hidden files and folders are not.

    Memory is bounded by the largest .txt file or .jsonl line.
    """

    unit = "documents"
    total = None

    def __init__(self, settings: config.FolderCorpus, root: Path) -> None:
        self.settings = settings
        self.folder = Path(root) / settings.path
        self.where = f"folder {self.folder}"
        if not self.folder.is_dir():
            found = "is a file, expected a folder" if self.folder.exists() else "does not exist"
            raise UserError(
                f"data.corpus.path: {self.folder} {found}; "
                "relative paths start at the folder above config/, correct the path"
            )
        present = sorted(path for path in self.folder.rglob("*") if path.is_file() and not self._hidden(path))
        self.files = [path for path in present if path.suffix in SUFFIXES]
        if not self.files:
            raise UserError(
                f"data.corpus.path: no .txt or .jsonl file in {self.where} ({len(present)} other files); "
                "put the text there or correct the path"
            )

    def _hidden(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.folder).parts)

    def batches(self) -> Iterator[TextBatch]:
        return batch_texts(document for path in self.files for document in self._documents(path))

    def provenance(self) -> dict[str, object]:
        return {"files": len(self.files), "bytes": sum(path.stat().st_size for path in self.files)}

    def _documents(self, path: Path) -> Iterator[tuple[str, str | None]]:
        """Yield text and source of each document of a file."""
        if path.suffix == ".txt":
            yield _decode(path.read_bytes(), str(path)), f"{FILE_SOURCE}{path.relative_to(self.folder).as_posix()}"
            return
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield self._document_of_line(line, f"{path}, line {number}")

    def _document_of_line(self, line: bytes, where: str) -> tuple[str, str | None]:
        try:
            value = json.loads(_decode(line, where))
        except RecursionError:
            raise UserError(f"{where}: nested too deep to be read; expected an object of text per line") from None
        except ValueError as error:  # not JSON, or a number of too many digits
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{where}: not valid JSON ({reason}); expected one object per line") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
        text = _text_in(value, self.settings.text_field, where, "text_field")
        if self.settings.unit_field is None:
            return text, None
        return text, FIELD_SOURCE + _text_in(value, self.settings.unit_field, where, "unit_field")


def _text_in(value: dict[str, object], field: str, where: str, setting: str) -> str:
    if field not in value:
        raise UserError(f"{where}: no key '{field}', found {', '.join(map(repr, value))}; fix data.corpus.{setting}")
    text = value[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: key '{field}' holds {type(text).__name__}, expected text")
    return text


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
