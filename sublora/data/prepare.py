"""From a corpus to token files: train.bin, val.bin, test.bin, the document index and meta.json.

One pass over the text in worker processes, one over the tokens. Documents are ordered by a digest of their
text, keyed with the shuffle seed (see `sublora.data.spill`): the first are val, the next test, the rest train.
So the files depend on the set of texts and on the seed alone, not on the order of the corpus or the number of
workers, and no text is in two splits. Texts of another corpus can be left out by their keys. Memory does not
grow with the corpus, except for 8 bytes per document, and 16 more where documents have sources.

With data.unit: source the order is by a keyed digest of the source's name, then by the documents', and whole sources
go to val and test, until each holds as many documents as the settings ask for. A text that occurs in several sources
stays with the one whose key is smallest.
"""

import contextlib
import fcntl
import functools
import hashlib
import math
import multiprocessing
import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sublora import config
from sublora.data.base import base_data, open_text_keys
from sublora.data.corpora import open_reader
from sublora.data.dataset import (
    DOC_LENGTHS_FILE,
    EOT_INDICES_FILE,
    SOURCE_IDS_FILE,
    SPLITS,
    TokenDataset,
    dataset_folder,
    unit_starts_file,
)
from sublora.data.meta import META_FILE
from sublora.data.permuted import permuted_tokens, permuted_words
from sublora.data.readers import Batch, Reader, Texts
from sublora.data.spill import (
    Spill,
    document_key,
    documents_in_order,
    key_of_record,
    make_record,
    record_of_key,
)
from sublora.data.text_keys import KEY_BYTES, TEXT_KEYS_FILE, TextKeys, write_text_keys
from sublora.data.tokenizers import (
    OF_THE_BASE,
    TOKENIZER_FILE,
    TokenizerFacts,
    import_tokenizer,
    token_type,
    tokenizer_facts,
)
from sublora.errors import UserError
from sublora.files import atomic_path, remove_stale_temporaries, sha256_of_file, write_json, writing
from sublora.pretrained import pretrained_folder
from sublora.versions import NUMERICS_VERSIONS

QUEUED_BATCHES_PER_WORKER = 4
PROGRESS_INTERVAL = 1000
LOCK_FILE = ".prepare.lock"
WORK_FOLDER = ".prepare"


@dataclass
class TokenizedBatch:
    """What a worker makes of a batch, and the sum of such counts (records and keys are not summed)."""

    units: int = 0
    documents: int = 0
    too_short: int = 0
    too_long: int = 0
    too_few_tokens: int = 0
    unparsable_files: int = 0
    records: list[bytes] = field(default_factory=list)
    left_out_keys: list[bytes] = field(default_factory=list)
    """Keys of the texts that are too short or of too few tokens."""

    def count(self, other: "TokenizedBatch") -> None:
        self.units += other.units
        self.documents += other.documents
        self.too_short += other.too_short
        self.too_long += other.too_long
        self.too_few_tokens += other.too_few_tokens
        self.unparsable_files += other.unparsable_files


def tokenize_batch(batch: Batch, data: config.Data, tokenizer: TokenizerFacts) -> TokenizedBatch:
    """Read a batch and make a record of each document that is neither too short nor too long."""
    texts = batch.read()
    made = TokenizedBatch(units=len(batch), documents=len(texts.documents), unparsable_files=texts.unparsable_files)
    fitting, sources, seed = [], [], data.shuffle_seed
    longest = math.inf if data.max_characters is None else data.max_characters
    for text, source in zip(map(_valid_unicode, texts.documents), _sources_of(texts, data), strict=True):
        if data.min_characters <= len(text) <= longest:
            fitting.append(text)
            sources.append(source)
            continue
        made.too_short += len(text) < data.min_characters
        made.too_long += len(text) > longest
        made.left_out_keys.append(document_key(text.encode(), seed))
    encoded = _encoded(fitting, data, tokenizer)
    for text, source, tokens in zip(fitting, sources, encoded, strict=True):
        if len(tokens) >= data.min_tokens:
            made.records.append(make_record(text.encode(), tokens, seed, source))
        else:
            made.too_few_tokens += 1
            made.left_out_keys.append(document_key(text.encode(), seed))
    return made


def _encoded(texts: list[str], data: config.Data, tokenizer: TokenizerFacts) -> list[np.ndarray]:
    """Tokens of each text, in the order that the settings ask for."""
    seed, encode = data.shuffle_seed, tokenizer.load().encode_batch
    if data.permute == "words":
        return encode([permuted_words(text, seed) for text in texts])
    encoded = encode(texts)
    if data.permute == "tokens":
        return [permuted_tokens(tokens, text, seed) for tokens, text in zip(encoded, texts, strict=True)]
    return encoded


def _sources_of(texts: Texts, data: config.Data) -> Sequence[str | None]:
    """The source of each document that is to be noted. UserError if one has none and needs it."""
    nothing = [None] * len(texts.documents)
    if not data.knows_sources:
        return nothing
    sources = texts.sources or nothing
    if None in sources:
        raise UserError(
            "data.unit: source: a document of data.corpus has no source (a .jsonl line without "
            "data.corpus.unit_field?); name the field that holds it, or set data.unit: document"
        )
    return sources


def _valid_unicode(text: str) -> str:
    """The text with lone surrogates, which JSON and Python literals can hold and UTF-8 cannot, replaced by '?'."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def prepare_dataset(
    data: config.Data,
    root: Path,
    *,
    exclude: TextKeys | None = None,
    pretrained: Path | None = None,
    started: Callable[[], None] | None = None,
) -> Path:
    """Build the dataset that settings describe, without the texts of `exclude`, and return its folder,
    {root}/data/{name}.

    Always builds anew. Files appear whole or not at all, meta.json last; while it is missing, the dataset does
    not open. Temporary files in that folder take about as much space as the result, twice that with units.
    `pretrained`: the folder of the model whose tokenizer makes the tokens, with data.tokenizer: base.
    `started` is called once the corpus is open.

    Raises UserError for a corpus that cannot be read or holds too few documents, for a tokenizer without its
    vocabulary, and if another process is writing the same folder.
    """
    if exclude is not None and exclude.shuffle_seed != data.shuffle_seed:
        raise ValueError(f"keys of seed {exclude.shuffle_seed} say nothing of keys of seed {data.shuffle_seed}")
    tokenizer, reader, folder = _open_corpus(data, root, started, pretrained)
    with _work_folder(folder) as work, Spill(work / "records", exclude) as spill, _progress() as progress:
        counts = _tokenize_corpus(reader, data, tokenizer, progress, spill)
        write_dataset(folder, data, tokenizer, spill, counts, reader.provenance(), progress)
    return folder


def prepare_base_dataset(settings: config.Settings, root: Path, *, started: Callable[[], None] | None = None) -> Path:
    """Build the dataset that the base is trained on; its folder.

    Beside the dataset's files, text_keys.bin holds the keys of all texts of the base's corpus, also of those that are
    too short or of too few tokens. meta.json has their number and sha256 in provenance.text_keys.

    Raises what `prepare_dataset` raises.
    """
    data = base_data(settings)
    try:
        tokenizer, reader, folder = _open_corpus(data, root, started)
        with (
            _work_folder(folder) as work,
            Spill(work / "records") as spill,
            Spill(work / "texts") as texts,
            _progress() as progress,
        ):
            counts = _tokenize_corpus(reader, data, tokenizer, progress, spill, texts)
            # Renamed after meta.json: keys that are not those of meta.json are refused when they are opened.
            with atomic_path(folder / TEXT_KEYS_FILE) as temporary:
                keys = write_text_keys(temporary, texts.sorted_keys())
                provenance = reader.provenance() | {"text_keys": keys}
                write_dataset(folder, data, tokenizer, spill, counts, provenance, progress)
    except UserError as error:
        raise UserError(f"dataset of the base (its keys are base.corpus and so on, not data.corpus): {error}") from None
    return folder


def prepare_all(settings: config.Settings, root: Path, *, started: Callable[[], None] | None = None) -> Path:
    """Build all datasets that settings describe; the folder of the target, which the bounds are about.

    Where the base is trained, its dataset comes first, and no text of its corpus enters the target's.

    Raises what `prepare_dataset` raises.
    """
    if not isinstance(settings.base, config.TrainedBase):
        pretrained = None
        if isinstance(settings.base, config.PretrainedBase) and settings.data.tokenizer == OF_THE_BASE:
            pretrained = pretrained_folder(settings.base, root)
        return prepare_dataset(settings.data, root, pretrained=pretrained, started=started)
    prepare_base_dataset(settings, root, started=started)
    return prepare_dataset(settings.data, root, exclude=open_text_keys(settings, root))


def _open_corpus(
    data: config.Data, root: Path, started: Callable[[], None] | None, pretrained: Path | None = None
) -> tuple[TokenizerFacts, Reader, Path]:
    """The tokenizer, the corpus's reader and the dataset's folder."""
    folder = dataset_folder(root, data)
    tokenizer = tokenizer_facts(data.tokenizer) if pretrained is None else import_tokenizer(pretrained, folder)
    tokenizer.load()  # before a corpus is downloaded that could not be tokenized
    reader = open_reader(data.corpus, root)
    if started is not None:
        started()
    return tokenizer, reader, folder


def write_dataset(
    folder: Path,
    data: config.Data,
    tokenizer: TokenizerFacts,
    spill: Spill,
    counts: TokenizedBatch,
    provenance: dict[str, object],
    progress: Progress,
) -> None:
    """All files of a dataset from the records of its documents, meta.json last.

    `counts` and `provenance`, facts about the text, only go into meta.json. UserError if the distinct documents are
    not enough for val and test and one to train on.
    """
    splits = _write_splits(folder, data, tokenizer, spill, progress)
    files = {f"{split}.bin": facts.file_facts for split, facts in splits.items()}
    files |= _write_arrays(folder, _index(splits, data))
    if tokenizer.path is not None:
        files[TOKENIZER_FILE] = _facts_of_file(tokenizer.path)
    write_json(folder / META_FILE, _meta(data, tokenizer, provenance, counts, spill, splits, files))
    # What stands on the disk is what was meant; the stages that follow need not read it again to know.
    TokenDataset.open_folder(folder, data).verified()


def _meta(
    data: config.Data,
    tokenizer: TokenizerFacts,
    provenance: dict[str, object],
    counts: TokenizedBatch,
    spill: Spill,
    splits: "dict[str, WrittenSplit]",
    files: dict[str, dict[str, object]],
) -> dict[str, object]:
    """What meta.json holds; the same bytes for the same text and settings."""
    kept = sum(len(facts.lengths) for facts in splits.values())
    return {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "splits": {split: facts.counts(data.unit) for split, facts in splits.items()},
        "files": files,
        "documents": {
            "read": counts.documents,
            "too_short": counts.too_short,
            "too_long": counts.too_long,
            "too_few_tokens": counts.too_few_tokens,
            "duplicates": spill.added - spill.excluded - kept,
            "in_base_corpus": spill.excluded,
            "kept": kept,
        },
        "excluded_texts": None if spill.exclude is None else spill.exclude.facts(),
        "provenance": provenance | {"unparsable_files": counts.unparsable_files},
        "settings": config.data_settings(data),
        "numerics_version": NUMERICS_VERSIONS["data"],
    }


def _tokenize_corpus(
    reader: Reader,
    data: config.Data,
    tokenizer: TokenizerFacts,
    progress: Progress,
    spill: Spill,
    texts: Spill | None = None,
) -> TokenizedBatch:
    """Fill `spill` with all documents of a fitting length, and `texts` with a record without tokens of every
    document; counts of what was read. UserError if no document fits.
    """
    work = functools.partial(tokenize_batch, data=data, tokenizer=tokenizer)
    counts = TokenizedBatch()
    task = progress.add_task(f"tokenizing ({reader.unit})", total=reader.total)
    for tokenized in map_in_processes(work, reader.batches(), data.workers):
        for record in tokenized.records:
            spill.add(record)
        if texts is not None:
            for key in [key_of_record(record) for record in tokenized.records] + tokenized.left_out_keys:
                texts.add(record_of_key(key))
        counts.count(tokenized)
        progress.update(task, completed=counts.units)
    if not spill.added:
        raise UserError(
            f"data.corpus: {reader.where}: read {counts.documents} documents, {counts.too_short} of them shorter "
            f"than data.min_characters {data.min_characters}, {counts.too_long} longer than data.max_characters "
            f"{data.max_characters} and {counts.too_few_tokens} of fewer tokens than data.min_tokens "
            f"{data.min_tokens}, none left; mend the corpus or change those settings"
        )
    return counts


def map_in_processes(
    work: Callable[[Batch], TokenizedBatch], batches: Iterable[Batch], workers: int
) -> Iterator[TokenizedBatch]:
    """Results in the order of the batches, of which only a few per worker are held at a time."""
    if workers == 1:
        yield from map(work, batches)
        return
    # A fresh process each: forking one that runs threads (pyarrow, a progress bar) can deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    queued: deque[Future[TokenizedBatch]] = deque()
    try:
        for batch in batches:
            queued.append(pool.submit(work, batch))
            if len(queued) >= QUEUED_BATCHES_PER_WORKER * workers:
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"data.workers {workers}: a tokenizing process died (killed for lack of memory?); use fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class WrittenSplit:
    """What is known of a split once it is written."""

    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """Tokens of each document, without end-of-text."""
    unit_starts: "array[int]" = field(default_factory=lambda: array("q"))
    """First document of each unit; empty where every document is one."""
    sources: bytearray = field(default_factory=bytearray)
    """Key of the source of each document, KEY_BYTES each; empty without sources."""
    file_facts: dict[str, object] = field(default_factory=dict)

    def counts(self, unit: str) -> dict[str, int]:
        """What meta.json holds of the split."""
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
        if starts_unit:
            self.written.unit_starts.append(self.documents)
        self.written.sources += source
        data = tokens + self._end_of_text
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        self.written.lengths.append(len(tokens) // len(self._end_of_text))

    def finish(self) -> WrittenSplit:
        self.written.file_facts |= {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}
        return self.written


def _write_splits(
    folder: Path, data: config.Data, tokenizer: TokenizerFacts, spill: Spill, progress: Progress
) -> dict[str, WrittenSplit]:
    """Write train.bin, val.bin and test.bin, each unit into the first of val and test that lacks documents."""
    task = progress.add_task("writing (documents)", total=spill.added)
    with contextlib.ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            path = stack.enter_context(atomic_path(folder / f"{split}.bin"))
            writers[split] = stack.enter_context(SplitWriter(path, tokenizer))
        wanted = {"val": data.val_documents, "test": data.test_documents}
        grouped = data.unit == "source"
        documents = documents_in_order(spill, have_sources=data.knows_sources, grouped=grouped)
        kept, unit, split = 0, None, ""
        for kept, (source, tokens) in enumerate(documents, start=1):
            starts_unit = source != unit
            if starts_unit or not grouped:
                unit = source
                split = next((name for name, count in wanted.items() if writers[name].documents < count), "train")
            writers[split].add(tokens, source, starts_unit=starts_unit and grouped)
            if kept % PROGRESS_INTERVAL == 0:
                progress.update(task, completed=kept)
        progress.update(task, completed=spill.added)
        if not writers["train"].documents:
            units = sum(len(writer.written.unit_starts) for writer in writers.values())
            in_units = f", where val and test take whole units ({units} in all)" if grouped else ""
            raise UserError(
                f"data.corpus: {kept} documents are left ({_removed_in_words(spill, kept)}), expected at least "
                f"{data.val_documents + data.test_documents + 1}: data.val_documents {data.val_documents} + "
                f"data.test_documents {data.test_documents} + 1 to train on{in_units}; lower those "
                "or give more text"
            )
        # From the first renamed file on, an earlier meta.json would describe other files.
        (folder / META_FILE).unlink(missing_ok=True)
    return {split: writer.finish() for split, writer in writers.items()}


def _removed_in_words(spill: Spill, kept: int) -> str:
    words = f"{spill.added - spill.excluded - kept} duplicates removed"
    return words if spill.exclude is None else f"{words}, {spill.excluded} whose text is in the base's corpus"


def _index(splits: dict[str, WrittenSplit], data: config.Data) -> dict[str, np.ndarray]:
    """The arrays of a dataset by the names of their files, int64."""
    train = splits["train"]
    lengths = np.frombuffer(train.lengths, dtype=np.int64)
    arrays = {EOT_INDICES_FILE: np.cumsum(lengths + 1) - 1, DOC_LENGTHS_FILE: lengths}
    if data.unit == "source":
        starts = {split: np.frombuffer(facts.unit_starts, dtype=np.int64) for split, facts in splits.items()}
        return arrays | {unit_starts_file(split): values for split, values in starts.items()}
    if data.knows_sources:
        _, ids = np.unique(np.frombuffer(train.sources, dtype=f"V{KEY_BYTES}"), return_inverse=True)
        arrays[SOURCE_IDS_FILE] = ids.astype(np.int64)
    return arrays


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Facts of the files."""
    facts: dict[str, dict[str, object]] = {}
    for name, values in arrays.items():
        with atomic_path(folder / name) as temporary, open(temporary, "wb") as handle:
            np.save(handle, values)
        facts[name] = _facts_of_file(folder / name)
    return facts


def _facts_of_file(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for temporary files, held by one process at a time and removed at the end."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(open(folder / LOCK_FILE, "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another `sublora prepare` is writing here; wait for it or stop it") from None
        work = folder / WORK_FOLDER
        # Of a process that was killed:
        shutil.rmtree(work, ignore_errors=True)
        remove_stale_temporaries(folder)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _progress() -> Progress:
    """A bar on stderr where that is a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
