"""From texts to records of tokens, in worker processes, with counts of what was left out."""

import functools
import math
import multiprocessing
import re
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
from sublora.system.errors import UserError
from sublora.system.streams import generator

QUEUED_BATCHES_PER_WORKER = 4
WORD = re.compile(r"\S+")


@dataclass
class TokenizedBatch:
    """What a worker makes of a batch; also the sum of such counts, without records and keys."""

    units: int = 0
    documents: int = 0
    too_short: int = 0
    too_long: int = 0
    too_few_tokens: int = 0
    unparsable_files: int = 0
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
    # Tokenize the rest together, and sort out those with too few tokens.
    encoded = _encoded(fitting, data, tokenizer)
    for text, source, tokens in zip(fitting, sources, encoded, strict=True):
        if len(tokens) >= data.min_tokens:
            made.records.append(make_record(text.encode(), tokens, seed, source))
        else:
            made.too_few_tokens += 1
            made.left_out_keys.append(document_key(text.encode(), seed))
    return made


def _encoded(texts: list[str], data: config.Data, tokenizer: TokenizerFacts) -> list[np.ndarray]:
    """Return the tokens of each text, in the order that the settings ask for."""
    seed, encode = data.shuffle_seed, tokenizer.load().encode_batch
    if data.permute == "words":
        return encode([permuted_words(text, seed) for text in texts])
    encoded = encode(texts)
    if data.permute == "tokens":
        return [permuted_tokens(tokens, text, seed) for tokens, text in zip(encoded, texts, strict=True)]
    return encoded


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
