"""All files of a dataset, made from the records of its documents: tokens, index, meta.json."""

import contextlib
import hashlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import (
    Progress,
)

from sublora import config
from sublora.data.base_and_target import KEY_BYTES
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import (
    DOC_LENGTHS_FILE,
    EOT_INDICES_FILE,
    META_FILE,
    SOURCE_IDS_FILE,
    SPLITS,
    unit_starts_file,
)
from sublora.data.order import (
    Spill,
    documents_in_order,
    split_documents,
)
from sublora.data.tokenize import TokenizedBatch
from sublora.data.tokenizers import (
    TOKENIZER_FILE,
    TokenizerFacts,
    token_type,
)
from sublora.system.errors import UserError
from sublora.system.files import atomic_path, sha256_of_file, write_json
from sublora.system.versions import NUMERICS_VERSIONS, UNITS_VERSION

PROGRESS_INTERVAL = 1000


def write_dataset(
    folder: Path,
    data: config.Data,
    tokenizer: TokenizerFacts,
    spill: Spill,
    counts: TokenizedBatch,
    provenance: dict[str, object],
    progress: Progress,
) -> None:
    """Write all files of a dataset from the records of its documents, meta.json last.

    `counts` and `provenance`, facts about the text, only go into meta.json. UserError if there are too few distinct
    documents for val, test and one train document, or for data.train_documents.
    """
    splits, distinct = _write_splits(folder, data, tokenizer, spill, progress)
    files = {f"{split}.bin": facts.file_facts for split, facts in splits.items()}
    files |= _write_arrays(folder, _index(splits, data))
    if tokenizer.path is not None:
        files[TOKENIZER_FILE] = _facts_of_file(tokenizer.path)
    meta = _meta(data, tokenizer, provenance, counts, spill, splits, files, distinct=distinct)
    write_json(folder / META_FILE, meta)
    # The files were written as intended, so the stages that follow need not read them again to verify them.
    TokenDataset.open_folder(folder, data).verified()


def _meta(
    data: config.Data,
    tokenizer: TokenizerFacts,
    provenance: dict[str, object],
    counts: TokenizedBatch,
    spill: Spill,
    splits: "dict[str, WrittenSplit]",
    files: dict[str, dict[str, object]],
    *,
    distinct: int,
) -> dict[str, object]:
    """Return the contents of meta.json; the same text and settings give the same bytes."""
    kept = sum(len(facts.lengths) for facts in splits.values())
    return {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "splits": {split: facts.counts(data.unit) for split, facts in splits.items()},
        "files": files,
        # What became of each document that was read.
        "documents": {
            "read": counts.documents,
            "too_short": counts.too_short,
            "too_long": counts.too_long,
            "too_few_tokens": counts.too_few_tokens,
            "duplicates": spill.added - spill.excluded - distinct,
            "in_base_corpus": spill.excluded,
            **({} if data.train_documents is None else {"beyond_train_documents": distinct - kept}),
            "kept": kept,
            # Kept, in the form that the tokenizer of the base gives them.
            **({"normalized": counts.normalized} if counts.normalized else {}),
        },
        "excluded_texts": None if spill.exclude is None else spill.exclude.facts(),
        "provenance": provenance | {"unparsable_files": counts.unparsable_files},
        "settings": config.data_settings(data),
        "numerics_version": NUMERICS_VERSIONS["data"],
        **({"units_version": UNITS_VERSION} if data.unit == "source" else {}),
    }


@dataclass
class WrittenSplit:
    """What is known about a split once it is written."""

    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """The number of tokens of each document, without end-of-text."""
    unit_starts: "array[int]" = field(default_factory=lambda: array("q"))
    """First document of each unit; empty if every document is a unit."""
    sources: bytearray = field(default_factory=bytearray)
    """Key of each document's source, KEY_BYTES each; empty without sources."""
    file_facts: dict[str, object] = field(default_factory=dict)

    def counts(self, unit: str) -> dict[str, int]:
        """Return what meta.json holds about the split."""
        counts = {"documents": len(self.lengths), "tokens": sum(self.lengths) + len(self.lengths)}
        return counts if unit == "document" else counts | {"units": len(self.unit_starts)}


class SplitWriter:
    """A .bin file while it is written: documents as tokens of `token_type`, each followed by the end-of-text token."""

    def __init__(self, path: Path, tokenizer: TokenizerFacts) -> None:
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by __exit__
        self._end_of_text = np.array(tokenizer.eot_id, dtype=token_type(tokenizer.vocab_size)).tobytes()
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self.written = WrittenSplit()

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def documents(self) -> int:
        return len(self.written.lengths)

    def add(self, tokens: bytes, source: bytes, *, starts_unit: bool) -> None:
        """Append a document, given its tokens as bytes and the key of its source."""
        if starts_unit:
            self.written.unit_starts.append(self.documents)
        self.written.sources += source
        data = tokens + self._end_of_text
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        self.written.lengths.append(len(tokens) // len(self._end_of_text))

    def finish(self) -> WrittenSplit:
        """Return the facts of the written split."""
        self.written.file_facts |= {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}
        return self.written


def _write_splits(
    folder: Path, data: config.Data, tokenizer: TokenizerFacts, spill: Spill, progress: Progress
) -> tuple[dict[str, WrittenSplit], int]:
    """Write train.bin, val.bin and test.bin, and return their facts and the number of distinct documents.

    Each unit goes to the first of val and test that lacks documents, and to train when none does and
    data.train_documents allows it.
    """
    task = progress.add_task("writing (documents)", total=spill.added)
    with contextlib.ExitStack() as stack:
        # Open one writer per split; the files appear when the block ends without an error.
        writers = {}
        for split in SPLITS:
            path = stack.enter_context(atomic_path(folder / f"{split}.bin"))
            writers[split] = stack.enter_context(SplitWriter(path, tokenizer))
        wanted = {"val": data.val_documents, "test": data.test_documents}
        grouped = data.unit == "source"
        ordered = documents_in_order(spill, data.shuffle_seed, have_sources=data.knows_sources, grouped=grouped)
        documents = split_documents(ordered, wanted, grouped=grouped, train_units=data.train_documents)
        distinct = 0
        for distinct, (place, source, tokens, starts_unit) in enumerate(documents, start=1):
            if place is not None:
                writers[place].add(tokens, source, starts_unit=starts_unit)
            if distinct % PROGRESS_INTERVAL == 0:
                progress.update(task, completed=distinct)
        progress.update(task, completed=spill.added)
        # Without enough train documents, raise before any file is renamed.
        _check_enough({split: writer.written for split, writer in writers.items()}, data, spill, distinct)
        # Once the first file is renamed, an earlier meta.json would describe other files.
        (folder / META_FILE).unlink(missing_ok=True)
    return {split: writer.finish() for split, writer in writers.items()}, distinct


def _check_enough(splits: dict[str, WrittenSplit], data: config.Data, spill: Spill, distinct: int) -> None:
    """UserError if no document is left to train on, or fewer than data.train_documents asks for."""
    removed = f"{spill.added - spill.excluded - distinct} duplicates removed"
    if spill.exclude is not None:
        removed += f", {spill.excluded} whose text is in the base's corpus"
    if not splits["train"].lengths:
        units = sum(len(facts.unit_starts) for facts in splits.values())
        in_units = f", where val and test take whole units ({units} in all)" if data.unit == "source" else ""
        raise UserError(
            f"data.corpus: {distinct} documents are left ({removed}), expected at least "
            f"{data.val_documents + data.test_documents + 1}: data.val_documents {data.val_documents} + "
            f"data.test_documents {data.test_documents} + 1 to train on{in_units}; lower those "
            "or give more text"
        )
    of_train = splits["train"].counts(data.unit)
    found = of_train.get("units", of_train["documents"])
    if data.train_documents is not None and found < data.train_documents:
        raise UserError(
            f"data.train_documents {data.train_documents}: {found} {data.unit}s are left to train on ({removed}); "
            "lower it, or leave it out to take all"
        )


def _index(splits: dict[str, WrittenSplit], data: config.Data) -> dict[str, np.ndarray]:
    """Return the arrays of a dataset by the names of their files, int64."""
    train = splits["train"]
    lengths = np.frombuffer(train.lengths, dtype=np.int64)
    ends = lengths + 1
    np.cumsum(ends, out=ends)
    ends -= 1
    arrays = {EOT_INDICES_FILE: ends, DOC_LENGTHS_FILE: lengths}
    if data.unit == "source":
        starts = {split: np.frombuffer(facts.unit_starts, dtype=np.int64) for split, facts in splits.items()}
        return arrays | {unit_starts_file(split): values for split, values in starts.items()}
    if data.knows_sources:
        _, ids = np.unique(np.frombuffer(train.sources, dtype=f"V{KEY_BYTES}"), return_inverse=True)
        arrays[SOURCE_IDS_FILE] = ids.astype(np.int64)
    return arrays


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Write the arrays, and return the facts of their files."""
    facts: dict[str, dict[str, object]] = {}
    for name, values in arrays.items():
        with atomic_path(folder / name) as temporary, open(temporary, "wb") as handle:
            np.save(handle, values)
        facts[name] = _facts_of_file(folder / name)
    return facts


def _facts_of_file(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
