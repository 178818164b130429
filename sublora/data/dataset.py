"""A prepared dataset: tokens on disk, read through memory maps.

It is light to import and to open: no network library, no full read of the tokens.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from sublora import config
from sublora.data.dataset_files import (
    DOC_LENGTHS_FILE,
    EOT_INDICES_FILE,
    FILES,
    META_FILE,
    PREPARE_AGAIN,
    SOURCE_IDS_FILE,
    SPLITS,
    UNIT_FILES,
    Meta,
    check_hashes,
    check_hashes_of_changed_files,
    dataset_files,
    load_index,
    read_checked_meta,
    unit_starts_file,
)
from sublora.data.tokenizers import TOKENIZER_FILE, Tokenizer, TokenizerFacts, token_type
from sublora.data.units import Units
from sublora.system.errors import UserError

BLOCK_TOKENS = 1 << 20
"""Tokens that are in memory at once while a whole split is read."""


def dataset_folder(root: Path, data: config.Data) -> Path:
    """Return the folder of a dataset's files."""
    return Path(root) / "data" / data.name


class TokenDataset:
    """Tokens and document index of a dataset.

    Attributes:
        folder: the folder with the files.
        meta: the contents of meta.json.
        tokenizer: name of the tokenizer.
        vocab_size: V, the end-of-text token included.
        eot_id: the token after each document.
        n_documents: the number of train documents.
        unit: what is drawn independently: document or source.
        min_tokens: no document has fewer tokens, end-of-text not counted.
        excluded_texts: sha256, in hexadecimal, of the keys of another corpus's texts, all of which were left out; None
            if no texts were left out for that reason.
        eot_indices: int64 (n_documents,), position of each train document's end-of-text token in train.bin.
    """

    def __init__(self, folder: Path, meta: Meta) -> None:
        """Use `open`, which checks the files."""
        # Facts of meta.json.
        self.folder = folder
        self.meta = meta
        self.tokenizer = meta.tokenizer
        self.vocab_size = meta.vocab_size
        self.eot_id = meta.eot_id
        self.n_documents = meta.splits.train.documents
        self.unit: config.Unit = meta.settings.unit
        self.min_tokens = meta.settings.min_tokens
        excluded = meta.excluded_texts
        self.excluded_texts = None if excluded is None else excluded.sha256
        # The index of train is mapped; the positions of other splits and the token maps are filled in on demand.
        self.eot_indices: np.ndarray = load_index(folder / EOT_INDICES_FILE)
        self._train_lengths: np.ndarray = load_index(folder / DOC_LENGTHS_FILE)
        self._end_of_text_positions: dict[str, np.ndarray] = {"train": self.eot_indices}
        self._maps: dict[str, np.memmap] = {}
        self._unit_starts: dict[str, np.ndarray] = {}
        if self.unit == "source":
            # As plain arrays: indexing a memory map would create another memory map each time.
            files = {split: folder / unit_starts_file(split) for split in SPLITS}
            self._unit_starts = {split: np.asarray(load_index(path)) for split, path in files.items()}

    @classmethod
    def open(cls, root: Path, data: config.Data) -> "TokenDataset":
        """Open the dataset that settings describe, below `root`.

        Raises UserError if it is missing, was made with other settings, its files are not those that meta.json lists
        (sizes and counts; `verify_hashes` compares contents), or a train document has fewer tokens than `min_tokens`.
        Val and test documents are checked for that when their lengths are first read.
        """
        return cls.open_folder(dataset_folder(root, data), data)

    @classmethod
    def open_folder(cls, folder: Path, data: config.Data | None) -> "TokenDataset":
        """Open the dataset as `open` does, with the files in any folder; None: whatever settings made them."""
        dataset = cls(folder, read_checked_meta(folder, data))
        dataset._check_index()
        return dataset

    def _check_index(self) -> None:
        """Check the shapes of the index against meta.json, and the index against the token counts."""
        documents, tokens = self.meta.splits.train.documents, self.meta.splits.train.tokens
        # The arrays of train documents.
        for name, values in ((EOT_INDICES_FILE, self.eot_indices), (DOC_LENGTHS_FILE, self._train_lengths)):
            if values.shape != (documents,) or values.dtype != np.int64:
                raise UserError(
                    f"{self.folder / name}: found {values.dtype} of shape {values.shape}, expected int64 of shape "
                    f"({documents},), one entry per train document; {PREPARE_AGAIN}"
                )
        if documents and int(self.eot_indices[-1]) != tokens - 1:
            raise UserError(
                f"{self.folder / EOT_INDICES_FILE}: the last document ends at token {int(self.eot_indices[-1])}, "
                f"expected {tokens - 1}, the last of train.bin; {PREPARE_AGAIN}"
            )
        # Lengths, units and sources.
        self._check_long_enough(DOC_LENGTHS_FILE, self._train_lengths)
        for split, starts in self._unit_starts.items():
            self._check_units(split, starts)
        wanted = self.meta.settings.model_dump().get("train_documents", self.n_units)
        if self.n_units != wanted:
            raise UserError(
                f"{self.folder / META_FILE}: {self.n_units} {self.unit}s to train on, expected data.train_documents "
                f"{wanted}; {PREPARE_AGAIN}"
            )
        sources = self.source_ids
        if sources is not None and (sources.shape != (documents,) or sources.dtype != np.int64):
            raise UserError(
                f"{self.folder / SOURCE_IDS_FILE}: found {sources.dtype} of shape {sources.shape}, expected int64 of "
                f"shape ({documents},), one entry per train document; {PREPARE_AGAIN}"
            )

    def _check_units(self, split: str, starts: np.ndarray) -> None:
        """Check that units partition the documents: each begins after the one before, and none is empty."""
        path, counts = self.folder / unit_starts_file(split), self.meta.split(split)
        if starts.dtype != np.int64 or starts.shape != (counts.units,):
            raise UserError(
                f"{path}: found {starts.dtype} of shape {starts.shape}, expected int64 of shape ({counts.units},), "
                f"one entry per unit; {PREPARE_AGAIN}"
            )
        if not partitions(starts, counts.documents):
            raise UserError(
                f"{path}: the units do not partition the {counts.documents} documents of {split}; {PREPARE_AGAIN}"
            )

    def _check_long_enough(self, name: str, lengths: np.ndarray) -> None:
        if len(lengths) and lengths.min() < self.min_tokens:
            shorter = np.flatnonzero(lengths < self.min_tokens)
            raise UserError(
                f"{self.folder / name}: document {shorter[0]} has {lengths[shorter[0]]} tokens ({len(shorter)} "
                f"documents are too short), expected at least data.min_tokens {self.min_tokens}; {PREPARE_AGAIN}"
            )

    @cached_property
    def data_hash(self) -> str:
        """The identity of the dataset: sha256, in hexadecimal, of its files' hashes and the tokenizer's facts.

        Where texts were excluded, the hash of their keys enters as well, and where sources are known, which document is
        from which source. The hashes are those in meta.json; `verify_hashes` checks whether the files still have them.
        """
        facts = {key: getattr(self.meta, key) for key in ("tokenizer", "vocab_size", "eot_id")}
        if self.excluded_texts is not None:
            facts["excluded_texts"] = self.excluded_texts
        names = [*FILES, *(UNIT_FILES if self.unit == "source" else ())]
        names += [SOURCE_IDS_FILE] if SOURCE_IDS_FILE in self.files else []
        return config.digest(facts | {"files": {name: self.meta.files[name].sha256 for name in names}})

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer that made the tokens; UserError if its vocabulary cannot be loaded."""
        path = self.folder / TOKENIZER_FILE if TOKENIZER_FILE in self.files else None
        return TokenizerFacts(self.tokenizer, self.vocab_size, self.eot_id, path).load()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the dataset's files except meta.json."""
        return dataset_files(self.meta)

    @cached_property
    def longest_targets(self) -> int:
        """The number of targets of the longest train document, its closing end-of-text included."""
        return int(self.document_lengths("train").max()) + 1

    @property
    def n_units(self) -> int:
        """n, the number of train units."""
        return len(self.units("train"))

    def units(self, split: str) -> Units:
        """Return how the documents of a split are grouped."""
        return Units(self.meta.split(self._known(split)).documents, self._unit_starts.get(split))

    def leading_units(self, split: str, documents: int) -> tuple[np.ndarray, Units]:
        """Return the documents of the first units that together hold at least `documents` of them, and their grouping.

        The documents are indices, int64 (D).
        """
        units = self.units(split)
        return units.take(np.arange(units.leading(documents)))

    def sources(self) -> tuple[np.ndarray, Units]:
        """Return train documents in the order of their sources, int64 (n_documents,), and where each source begins.

        ValueError where `source_ids` are not known.
        """
        ids = self.source_ids
        if ids is None:
            raise ValueError(f"{self.folder}: the sources of its documents are not known")
        order_D = np.argsort(ids, kind="stable")
        starts_U = np.flatnonzero(np.diff(ids[order_D], prepend=-1))
        return order_D, Units(len(order_D), starts_U)

    def source_facts(self) -> dict[str, Any]:
        """Return the number of train sources, and the hash of the file that assigns documents to them."""
        return {"n": len(self.sources()[1]), "sha256": self.meta.files[SOURCE_IDS_FILE].sha256}

    @cached_property
    def source_ids(self) -> np.ndarray | None:
        """The number of the source of each train document, int64 (n_documents,); None if it is not known.

        It is known if each document is a unit of its own and the corpus has sources.
        """
        return load_index(self.folder / SOURCE_IDS_FILE) if SOURCE_IDS_FILE in self.files else None

    def in_words(self) -> str:
        """Return how many documents there are, and how many were left out for which reason, in words."""
        counts, settings = self.meta.documents, self.meta.settings.model_dump()
        kept = {split: self.meta.split(split).documents for split in SPLITS}
        left_out = [
            f"{counts['too_short']:,} shorter than {settings['min_characters']} characters",
            f"{counts['too_few_tokens']:,} of fewer than {settings['min_tokens']} tokens",
            f"{counts['duplicates']:,} duplicates",
        ]
        if settings["max_characters"] is not None:
            left_out.append(f"{counts['too_long']:,} longer than {settings['max_characters']} characters")
        if self.excluded_texts is not None:
            left_out.append(f"{counts['in_base_corpus']:,} whose text is also in the base's corpus")
        if settings.get("train_documents") is not None:
            left_out.append(f"{counts['beyond_train_documents']:,} beyond data.train_documents")
        normalized = counts.get("normalized", 0)
        spelled = f"; {normalized:,} are spelled as the tokenizer normalizes Unicode" if normalized else ""
        return (
            f"{self.folder.name}: {counts['read']:,} documents read; {kept['train']:,} to train on, "
            f"{kept['val']:,} val, {kept['test']:,} test; left out: {', '.join(left_out)}{spelled}"
        )

    def tokens(self, split: str) -> np.memmap:
        """Return all tokens of a split, of `token_type`, (tokens,), documents ended by `eot_id`; read-only."""
        if self._known(split) not in self._maps:  # one map per split, since a map holds a file descriptor
            self._maps[split] = np.memmap(self.folder / f"{split}.bin", dtype=token_type(self.vocab_size), mode="r")
        return self._maps[split]

    def document(self, split: str, i: int) -> np.ndarray:
        """Return a copy of the tokens of document i without end-of-text, of `token_type`, (length,).

        IndexError beyond the last document.
        """
        ends = self._ends(split)
        if not 0 <= i < len(ends):
            raise IndexError(f"document {i} of {split}, which has {len(ends)}")
        start = int(ends[i - 1]) + 1 if i else 0
        return np.array(self.tokens(split)[start : int(ends[i])])

    def document_lengths(self, split: str) -> np.ndarray:
        """Return the number of tokens of each document without end-of-text, int64 (documents,)."""
        if self._known(split) == "train":
            return self._train_lengths
        return np.diff(self._ends(split), prepend=-1) - 1

    def unigram_entropy_bits(self, split: str) -> float:
        """Return the entropy of the split's token frequencies (end-of-text included), in bits per token.

        It is the loss of the best model that ignores context.
        """
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for block in self._blocks(split):
            counts += np.bincount(block, minlength=self.vocab_size)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())

    def verify_hashes(self) -> None:
        """Read all files; UserError if one differs from its sha256 in meta.json."""
        check_hashes(self.folder, self.meta)

    def verified(self) -> Self:
        """Check that the files have the hashes of meta.json, and return the dataset.

        Every stage that computes calls this first. A file is read only if it changed since it was last read
        (`check_hashes_of_changed_files`). UserError if a file differs.
        """
        check_hashes_of_changed_files(self.folder, self.meta)
        return self

    def _known(self, split: str) -> str:
        if split not in SPLITS:
            raise ValueError(f"no split '{split}', expected one of {', '.join(SPLITS)}")
        return split

    def _blocks(self, split: str) -> Iterator[np.ndarray]:
        """Yield the split's tokens in pieces, read without a memory map so that no page stays resident."""
        with open(self.folder / f"{self._known(split)}.bin", "rb") as handle:
            dtype = token_type(self.vocab_size)
            while block := handle.read(BLOCK_TOKENS * dtype.itemsize):
                yield np.frombuffer(block, dtype=dtype)

    def _ends(self, split: str) -> np.ndarray:
        """Return the positions of the split's end-of-text tokens, int64 (documents,)."""
        if self._known(split) not in self._end_of_text_positions:
            starts = range(0, self.meta.split(split).tokens, BLOCK_TOKENS)
            positions = [
                start + np.flatnonzero(block == self.eot_id)
                for start, block in zip(starts, self._blocks(split), strict=True)
            ]
            ends = np.concatenate(positions)
            expected = self.meta.split(split).documents
            if len(ends) != expected:
                raise UserError(
                    f"{self.folder / f'{split}.bin'}: {len(ends)} end-of-text tokens, expected {expected} documents; "
                    f"{PREPARE_AGAIN}"
                )
            self._check_long_enough(f"{split}.bin", np.diff(ends, prepend=-1) - 1)
            self._end_of_text_positions[split] = ends
        return self._end_of_text_positions[split]


def partitions(starts: np.ndarray, documents: int) -> bool:
    """Return whether units that begin at these documents partition all of them, none of the units empty."""
    return bool(len(starts) and starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < documents)
