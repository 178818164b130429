"""From texts to records of tokens, in worker processes, with counts of what was left out."""

import functools
import math
import multiprocessing
import os.path
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from sublora import config
from sublora.data.corpora.reader import Batch, Reader, Texts
from sublora.data.order import (
    Spill,
    document_key,
    key_of_record,
    make_record,
    record_of_key,
)
from sublora.data.tokenizers import (
    TokenizerFacts,
)
from sublora.system.errors import UserError, printable
from sublora.system.streams import generator

QUEUED_BATCHES_PER_WORKER = 4
WORD = re.compile(r"\S+")
EXCERPT = 30
"""Characters of a document that a message shows after a place, half as many before it."""


@dataclass
class TokenizedBatch:
    """What a worker makes of a batch; also the sum of such counts, without records and keys."""

    units: int = 0
    documents: int = 0
    too_short: int = 0
    too_long: int = 0
    too_few_tokens: int = 0
    unparsable_files: int = 0
    normalized: int = 0
    """Documents whose tokens stand for another form of their text, equal to it by Unicode's canonical equivalence."""
    changed: int = 0
    """Documents whose tokens stand for another text."""
    first_change: str | None = None
    """What has become of the first of them, in words."""
    records: list[bytes] = field(default_factory=list)
    left_out_keys: list[bytes] = field(default_factory=list)
    """Keys of the texts that are too short, too long, or have too few tokens."""

    def count(self, other: "TokenizedBatch") -> None:
        """Add another batch's counts."""
        self.units += other.units
        self.documents += other.documents
        self.too_short += other.too_short
        self.too_long += other.too_long
        self.too_few_tokens += other.too_few_tokens
        self.unparsable_files += other.unparsable_files
        self.normalized += other.normalized
        self.changed += other.changed
        self.first_change = self.first_change or other.first_change


def tokenize_batch(batch: Batch, data: config.Data, tokenizer: TokenizerFacts) -> TokenizedBatch:
    """Read a batch and make a record of each document that is neither too short nor too long."""
    texts = batch.read()
    made = TokenizedBatch(units=len(batch), documents=len(texts.documents), unparsable_files=texts.unparsable_files)
    # Sort out texts by their lengths in characters.
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
    # Tokenize the rest together, and sort out those with too few tokens. Documents are told apart by the texts that
    # their tokens stand for: two that a tokenizer makes equal are one document.
    encoded, given_back = _encoded(fitting, data, tokenizer)
    for text, source, tokens, kept in zip(fitting, sources, encoded, given_back, strict=True):
        if kept != text:
            made.count(_difference(text, kept))
        if tokenizer.eot_id in tokens:
            raise UserError(
                f"data.tokenizer: the end-of-text token is among the tokens of a document ({_excerpt(text, 0)}); give "
                "a base whose tokenizer has a token for the end of a text alone"
            )
        if len(tokens) >= data.min_tokens:
            made.records.append(make_record(kept.encode(), tokens, seed, source))
        else:
            made.too_few_tokens += 1
            made.left_out_keys.append(document_key(kept.encode(), seed))
    return made


def _encoded(texts: list[str], data: config.Data, tokenizer: TokenizerFacts) -> tuple[list[np.ndarray], Sequence[str]]:
    """Return the tokens of each text, in the order that the settings ask for, and the text that they stand for."""
    seed, loaded = data.shuffle_seed, tokenizer.load()
    encoded = loaded.encode_batch(texts)
    given_back = loaded.given_back(texts, encoded)
    if data.permute == "words":
        encoded = loaded.encode_batch([permuted_words(text, seed) for text in texts])
    elif data.permute == "tokens":
        encoded = [permuted_tokens(tokens, text, seed) for tokens, text in zip(encoded, texts, strict=True)]
    return encoded, given_back


def _difference(text: str, given_back: str) -> TokenizedBatch:
    """Count a document whose tokens stand for a text that is not its own."""
    if unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", given_back):
        return TokenizedBatch(normalized=1)
    start = len(os.path.commonprefix([text, given_back]))
    words = f"{_excerpt(text, start)} becomes {_excerpt(given_back, start)}"
    return TokenizedBatch(changed=1, first_change=words)


def _excerpt(text: str, start: int) -> str:
    return f"'{printable(text[max(0, start - EXCERPT // 2) : start + EXCERPT])}'"


def permuted_words(text: str, seed: int) -> str:
    """Return a text with its words in an order drawn from the seed and the text, its white space unchanged."""
    words = WORD.findall(text)
    order = iter(_order(len(words), text, seed).tolist())
    return WORD.sub(lambda _: words[next(order)], text)


def permuted_tokens(tokens: NDArray, text: str, seed: int) -> NDArray:
    """Return the tokens of a text, shape (n,), in an order drawn from the seed and the text."""
    return tokens[_order(len(tokens), text, seed)]


def _order(count: int, text: str, seed: int) -> NDArray[np.int64]:
    return generator(seed, "order within a document", text.encode()).permutation(count)


def _sources_of(texts: Texts, data: config.Data) -> Sequence[str | None]:
    """Return the source of each document whose source is to be kept. UserError if a needed one is missing."""
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
    """Return the text with '?' for lone surrogates, which JSON and Python literals can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def tokenize_corpus(
    reader: Reader,
    data: config.Data,
    tokenizer: TokenizerFacts,
    progress: Progress,
    spill: Spill,
    texts: Spill | None = None,
) -> TokenizedBatch:
    """Tokenize a corpus into `spill`, and return the counts of what was read.

    Documents of a fitting length go to `spill`, and a record without tokens of every document to `texts`. UserError if
    no document fits.
    """
    work = functools.partial(tokenize_batch, data=data, tokenizer=tokenizer)
    counts = TokenizedBatch()
    task = progress.add_task(f"tokenizing ({reader.unit})", total=reader.total)
    # Collect the records in the order of the batches.
    for tokenized in map_in_processes(work, reader.batches(), data.workers):
        for record in tokenized.records:
            spill.add(record)
        if texts is not None:
            for key in [key_of_record(record) for record in tokenized.records] + tokenized.left_out_keys:
                texts.add(record_of_key(key))
        counts.count(tokenized)
        progress.update(task, completed=counts.units)
    # The bound would be about other texts than those of the corpus.
    if counts.changed:
        raise UserError(
            f"data.tokenizer: the tokenizer of the base changes the text of {counts.changed:,} of {counts.documents:,} "
            f"documents ({counts.first_change}); give a base whose tokenizer gives text back, as byte-level ones do, "
            "or leave those documents out"
        )
    # Nothing fits: say what was left out for which reason.
    if not spill.added:
        raise UserError(
            f"data.corpus: {reader.where}: read {counts.documents} documents, {counts.too_short} of them shorter "
            f"than data.min_characters {data.min_characters}, {counts.too_long} longer than data.max_characters "
            f"{data.max_characters} and {counts.too_few_tokens} of fewer tokens than data.min_tokens "
            f"{data.min_tokens}, none left; fix the corpus or change those settings"
        )
    return counts


def map_in_processes(
    work: Callable[[Batch], TokenizedBatch], batches: Iterable[Batch], workers: int
) -> Iterator[TokenizedBatch]:
    """Yield the results in the order of the batches, only a few per worker in memory at a time.

    UserError if a worker process dies.
    """
    if workers == 1:
        yield from map(work, batches)
        return
    # Workers are spawned: forking a process that runs threads (pyarrow, a progress bar) can deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    queued: deque[Future[TokenizedBatch]] = deque()
    try:
        # Keep a bounded number of batches queued, and wait for the oldest first.
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
