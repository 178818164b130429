"""Every comparison of a verification: claimed against recomputed values, and how far apart they may be.

Compared are the record of bounds.json, the arrays of losses.npz, the facts of the dataset (where documents end, how
short they are, whether one occurs twice) and the checkpoint.
"""

import dataclasses
import hashlib
import itertools
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.record import ENVIRONMENT_KEYS
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS
from sublora.coding.quantizer import EntropyWeights, PlainWeights, quantize_plain, round_for_rate
from sublora.data.dataset import BLOCK_TOKENS, TokenDataset, partitions
from sublora.data.dataset_files import SPLITS
from sublora.runs.encode import PRICES_PER_BIT, val_losses, val_losses_of
from sublora.runs.message import Message
from sublora.training import checkpoint
from sublora.training.run import Run

RECORD_TOLERANCE = 1e-9
"""Relative difference between a number of bounds.json and the same formula on the same losses on another machine."""


# How far a claimed number may lie from the verifier's own; never used for the bound that the verdict names.
LOSS_TOLERANCE_BITS = 2 * SCORE_TOLERANCE_BITS
"""Loss of a document, and so a mean of losses: prover and verifier may each be off by the allowance for rounding."""
BOUND_TOLERANCE_BITS = 1e-3
"""Bets are picked from grids, so a bound on a draw may jump where two bets are equally good."""
TOPK_DOCUMENT_TOLERANCE = 5e-2
"""Top-k error of one document: near ties may be broken the other way."""
TOPK_MEAN_TOLERANCE = 1e-3
"""Mean top-k error, and its bounds."""


TOLERANCES = {"topk_errors": TOPK_DOCUMENT_TOLERANCE} | dict.fromkeys(
    ("excess_bits", "test_excess_bits", "source_excess_bits"), 2 * LOSS_TOLERANCE_BITS
)
"""Tolerance of each array of losses.npz whose tolerance is not that of a loss: an excess is a difference of two."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: what was claimed, what came out, and how far apart they may be."""

    name: str
    claimed: Any
    recomputed: Any
    tolerance: float | None = None
    """None: they must be equal."""

    @property
    def agrees(self) -> bool:
        if self.tolerance is None or not _is_number(self.recomputed):
            return type(self.claimed) is type(self.recomputed) and bool(self.claimed == self.recomputed)
        return _is_number(self.claimed) and abs(self.claimed - self.recomputed) <= self.tolerance


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


class Missing:
    """Stands for a key that is not there."""

    def __str__(self) -> str:
        return "(missing)"


MISSING = Missing()
"""Equal to nothing but itself."""

KeyPath = tuple[str, ...]
MOST_FACTS = 50
"""Facts about machines that are shown of a claim; a record has some twenty."""
MOST_UNKNOWN_KEYS = 50
"""Keys of a claim that no record has and that are listed one by one."""


def record_checks(
    claimed: Mapping[str, Any],
    records: tuple[Mapping[str, Any], Mapping[str, Any]],
    on_trust: frozenset[str],
) -> list[Check]:
    """Compare bounds.json key by key.

    records: what follows from losses.npz, and what the verifier's own losses give; on_trust: keys of which there are
    no losses of the verifier's. Every key of either side is compared, so a key that was added or left out is found.
    Facts about machines (ENVIRONMENT_KEYS) are not numbers that can be computed; of them only the keys are compared.
    """
    claims, stored, fresh = (dict(_leaves(record)) for record in (claimed, *records))
    # A claim may be full of keys that no record has: the first of them, and how many more there are, say enough.
    known = stored.keys() | fresh.keys()
    unknown = sorted(claims.keys() - known)
    checks = []
    if len(unknown) > MOST_UNKNOWN_KEYS:
        checks.append(Check("further keys that no record has", len(unknown) - MOST_UNKNOWN_KEYS, 0))
    for path in sorted(known | set(unknown[:MOST_UNKNOWN_KEYS])):
        name, value, wanted = ".".join(path), claims.get(path, MISSING), stored.get(path, MISSING)
        if path[0] in ENVIRONMENT_KEYS:
            if path not in claims or path not in stored:
                checks.append(Check(name, value, wanted))
            continue
        exact = RECORD_TOLERANCE * max(1.0, abs(wanted)) if isinstance(wanted, float) else None
        checks.append(Check(name, value, wanted, exact))
        limit = None if path[0] in on_trust else _limit(path)
        if limit is not None:
            checks.append(Check(f"{name}, re-scored", value, fresh.get(path, MISSING), limit))
    return checks


def _limit(path: KeyPath) -> float | None:
    """Return how far a number of the record that depends on losses may be off; None for one that does not."""
    key = path[0]
    if key == "by_source":
        return {"loss": LOSS_TOLERANCE_BITS, "n": None, "m": None}.get(path[-1], BOUND_TOLERANCE_BITS)
    if key in ("topk_errors", "topk_bounds"):
        return TOPK_MEAN_TOLERANCE
    if key in ("empirical_bpd", "val_loss_bits", "val_loss_unquantized_bits", "test_loss_bits"):
        return LOSS_TOLERANCE_BITS
    if key == "anchor":
        limits = {"base_loss": LOSS_TOLERANCE_BITS, "excess": 2 * LOSS_TOLERANCE_BITS}
        limits |= {"excess_sd": 2 * LOSS_TOLERANCE_BITS}
        return limits.get(path[-1], BOUND_TOLERANCE_BITS if "_bound" in path[-1] else None)
    if key.startswith("certified_gain"):
        return BOUND_TOLERANCE_BITS
    is_bound = key.startswith("bound") and key not in ("bound_inequality", "bound_strict_absent")
    return BOUND_TOLERANCE_BITS if is_bound else None


def _leaves(record: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value with its path; an empty table counts as a value, so that it does not vanish."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def environment_facts(claimed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a claim says about machines, by dotted key: the first MOST_FACTS of it."""
    facts = ((path, value) for path, value in _leaves(claimed) if path[0] in ENVIRONMENT_KEYS)
    return {".".join(path): value for path, value in itertools.islice(facts, MOST_FACTS)}


def loss_checks(stored: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> list[Check]:
    """Compare the arrays of losses.npz with the verifier's: names, shapes, documents and largest differences.

    ln P is compared per target, in bits. `own` lacks the val losses before quantization where there is no checkpoint.
    """
    names = {*own, "val_losses_unquantized_bits"}
    checks = [Check("arrays of losses.npz", sorted(names), sorted(stored))]
    if not checks[0].agrees:
        return checks
    exact = {
        "indices": "scored documents",
        "target_counts": "targets of the scored documents",
        "source_documents": "documents of the drawn sources",
        "base_indices": "documents scored for the base",
        "base_source_documents": "documents of the sources scored for the base",
    }
    exact = {name: title for name, title in exact.items() if name in own}
    for name, title in exact.items():
        checks.append(Check(title, True, bool(np.array_equal(stored[name], own[name]))))
    scale = np.log(2.0) * np.maximum(own["target_counts"], 1)
    for name in sorted(own.keys() - exact.keys()):
        given, computed = stored[name], own[name].astype(np.float64)
        if given.shape != computed.shape or given.dtype != np.float64:
            found, wanted = (f"{values.dtype} {values.shape}" for values in (given, computed))
            checks.append(Check(f"type and shape of {name}", found, wanted))
            continue
        difference = np.abs(given - computed) / (scale if name in ("log_p_nats", "base_log_p_nats") else 1.0)
        limit = TOLERANCES.get(name, LOSS_TOLERANCE_BITS)
        largest = float(np.max(difference, initial=0.0)) if np.isfinite(given).all() else float("inf")
        checks.append(Check(f"largest difference in {name}", 0.0, largest, limit))
    return checks


DIGEST_BYTES = 8
"""Length of a document's digest. Documents with equal digests are then compared token by token."""


@dataclasses.dataclass(frozen=True, eq=False)
class SplitFacts:
    """Result of one pass over the tokens of a split. Shape legend: D documents."""

    ends_D: NDArray[np.int64]
    """Positions of the end-of-text tokens."""
    digests_D: NDArray[np.uint64]
    largest_token: int
    trailing_tokens: int
    """Tokens after the last end-of-text, which belong to no document."""

    @property
    def lengths_D(self) -> NDArray[np.int64]:
        """Tokens of each document, its end-of-text not counted."""
        return np.diff(self.ends_D, prepend=-1) - 1


def split_facts(dataset: TokenDataset, split: str) -> SplitFacts:
    """Read a split once, in blocks; 16 bytes per document are kept."""
    tokens_S = dataset.tokens(split)
    ends, digests = array("q"), array("Q")
    largest, end, hasher = 0, -1, hashlib.blake2b(digest_size=DIGEST_BYTES)
    for start in range(0, len(tokens_S), BLOCK_TOKENS):
        block = np.array(tokens_S[start : start + BLOCK_TOKENS])
        largest = max(largest, int(block.max()))
        data, width, begin = memoryview(block.tobytes()), block.itemsize, 0
        for position in np.flatnonzero(block == dataset.eot_id).tolist():
            hasher.update(data[begin * width : position * width])
            digests.append(int.from_bytes(hasher.digest(), "little"))
            end, begin, hasher = start + position, position + 1, hashlib.blake2b(digest_size=DIGEST_BYTES)
            ends.append(end)
        hasher.update(data[begin * width :])
    return SplitFacts(
        np.frombuffer(ends, dtype=np.int64) if ends else np.zeros(0, dtype=np.int64),
        np.frombuffer(digests, dtype=np.uint64) if digests else np.zeros(0, dtype=np.uint64),
        largest,
        len(tokens_S) - 1 - end,
    )


def repeated_document(dataset: TokenDataset, facts: dict[str, SplitFacts]) -> str | None:
    """Name two equal documents of the dataset, in one split or in two; None if all documents differ."""
    splits = list(facts)
    first = np.cumsum([0] + [len(facts[split].ends_D) for split in splits])
    digests_D = np.concatenate([each.digests_D for each in facts.values()])
    sorted_D = np.sort(digests_D)
    for value in np.unique(sorted_D[1:][sorted_D[1:] == sorted_D[:-1]]):
        seen: dict[bytes, str] = {}
        for index in np.flatnonzero(digests_D == value).tolist():
            k = int(np.searchsorted(first, index, side="right")) - 1
            split, i = splits[k], index - int(first[k])
            begin = int(facts[split].ends_D[i - 1]) + 1 if i else 0
            text = np.array(dataset.tokens(split)[begin : int(facts[split].ends_D[i])]).tobytes()
            if text in seen:
                return f"{split} document {i} is {seen[text]}"
            seen[text] = f"{split} document {i}"
    return None


def _units_found(dataset: TokenDataset, split: str, documents: int) -> int:
    """Return the number of units, 0 if they do not partition that many documents."""
    starts = dataset.units(split).starts_U
    if starts is None:
        return documents
    return len(starts) if partitions(starts, documents) else 0


def data_checks(
    dataset: TokenDataset, *, min_tokens: int, vocab_size: int, n_documents: int, n_units: int
) -> list[Check]:
    """Compare the claimed facts of a dataset with its tokens: n, the documents' ends and lengths, V, no document twice.

    Units must partition the documents that the tokens show. Which documents belong together cannot be seen from them.
    """
    facts = {split: split_facts(dataset, split) for split in SPLITS}
    train = facts["train"]
    listed = np.array_equal(dataset.eot_indices, train.ends_D)
    lengths = np.array_equal(dataset.document_lengths("train"), train.lengths_D)
    checks = [
        Check("training documents, from the tokens", n_documents, len(train.ends_D)),
        Check("training units n", n_units, _units_found(dataset, "train", len(train.ends_D))),
        Check("vocabulary size V", vocab_size, dataset.vocab_size),
        Check("documents end where the end-of-text tokens are", True, listed),
        Check("documents are as long as their tokens", True, lengths),
    ]
    for split, found in facts.items():
        shortest = int(found.lengths_D.min(initial=np.iinfo(np.int64).max))
        checks += [
            Check(f"{split} documents", dataset.meta.split(split).documents, len(found.ends_D)),
            Check(f"{split} tokens below V", True, found.largest_token < vocab_size),
            Check(f"{split} tokens after the last end-of-text", 0, found.trailing_tokens),
            Check(
                f"units of {split} partition its documents", True, _units_found(dataset, split, len(found.ends_D)) > 0
            ),
            Check(f"{split} documents have min_tokens {min_tokens} or more", True, shortest >= min_tokens),
        ]
    return [*checks, Check("a document that occurs twice", None, repeated_document(dataset, facts))]


UNQUANTIZED = "val_loss_unquantized_bits"


def unquantized_losses(run: Run, message: Message, path: Path) -> tuple[Check, np.ndarray | None]:
    """Return whether a checkpoint encodes to the message and, if so, its val losses.

    Any w would do for the losses alone. One that rounds to the message may still not be the one that a training ended
    with, which no file can show. UserError if the file is not a checkpoint of this network.
    """
    loaded = checkpoint.load(path)
    checkpoint.restore(run, loaded, path)
    w_d = run.subspace.subspace_params.detach().cpu().numpy()
    split = tuple(int(k) for k in run.subspace.hard_split())
    encodes = split == tuple(message.contents.gates) and _rounds_to(message, w_d, loaded.get("quantization_step"))
    check = Check("the checkpoint encodes to the message", True, encodes)
    if not encodes:
        return check, None
    return check, val_losses_of(run, val_losses(run, w_d, split), message.contents.smoothing_index)


def _rounds_to(message: Message, w_d: np.ndarray, step: object) -> bool:
    """Return whether one of the ways in which `encode` rounds w gives the message's; `step`: as the checkpoint has it.

    Which of them is chosen depends on an estimate from losses, which another machine may round differently.
    """
    weights, w_d = message.contents.weights, w_d.astype(np.float64)
    candidates: list[PlainWeights | EntropyWeights] = []
    try:
        if isinstance(weights, PlainWeights):
            candidates = [quantize_plain(w_d, message.settings.message.levels)]
        elif isinstance(step, float):
            candidates = [round_for_rate(w_d, step, price * step**2) for price in PRICES_PER_BIT]
    except ValueError:  # not finite, or beyond what the quantizer can write
        return False
    return any(np.array_equal(candidate.values(), weights.values()) for candidate in candidates)
