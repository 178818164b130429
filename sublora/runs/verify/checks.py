"""Claimed against recomputed values, and how far apart they may be."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sublora.bounds.record import ENVIRONMENT_KEYS
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS

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
    checks = [Check("arrays of losses.npz", sorted(names), sorted(stored.keys() - {"provenance"}))]
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
