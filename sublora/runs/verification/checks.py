"""Claimed against recomputed values, and how far apart they may be."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sublora.bounds.record import ENVIRONMENT_KEYS

RECORD_TOLERANCE = 1e-9
"""Relative, for a number of bounds.json against the same formulas and the same losses on another machine."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a claimed number may lie from the verifier's own; never used for the bound that the verdict names."""

    document_bits: float
    """Loss of one document, bits per token."""
    mean_bits: float
    """Mean loss of the scored, val or test documents: rounding errors of documents are not all on one side."""
    bound_bits: float
    """A bound: bets are picked from grids, so a bound may jump where two of them are as good."""
    topk_document: float
    """Top-k error of one document: near ties may fall the other way."""
    topk_mean: float
    """Mean top-k error, and its bounds."""


FLOAT32 = Tolerance(2e-4, 5e-5, 1e-3, 5e-2, 1e-3)
"""Both scored in float32, where the batch that a document was in changes its loss by some 1e-6."""
BFLOAT16 = Tolerance(1e-1, 1e-2, 2e-2, 2e-1, 2e-2)
"""One of the two in bfloat16, which keeps 8 bits; against float32, documents differ by up to 0.05, means by 0.007."""


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


def record_checks(
    claimed: Mapping[str, Any],
    records: tuple[Mapping[str, Any], Mapping[str, Any]],
    tolerance: Tolerance,
    on_trust: frozenset[str],
) -> list[Check]:
    """bounds.json key by key.

    records: what follows from losses.npz, and what the verifier's own losses give; on_trust: keys of which there are
    no losses of the verifier's. Every key of either side is compared, so a key that was added or left out is found.
    Facts about machines (ENVIRONMENT_KEYS) are not numbers that can be computed; of them only the keys are compared.
    """
    claims, stored, fresh = (dict(_leaves(record)) for record in (claimed, *records))
    checks = []
    for path in sorted(claims.keys() | stored.keys() | fresh.keys()):
        name, value, wanted = ".".join(path), claims.get(path, MISSING), stored.get(path, MISSING)
        if path[0] in ENVIRONMENT_KEYS:
            if path not in claims or path not in stored:
                checks.append(Check(name, value, wanted))
            continue
        exact = RECORD_TOLERANCE * max(1.0, abs(wanted)) if isinstance(wanted, float) else None
        checks.append(Check(name, value, wanted, exact))
        limit = None if path[0] in on_trust else _limit(path, tolerance)
        if limit is not None:
            checks.append(Check(f"{name}, re-scored", value, fresh.get(path, MISSING), limit))
    return checks


def _limit(path: KeyPath, tolerance: Tolerance) -> float | None:
    """How far a number of the record that hangs on losses may be off; None for one that does not."""
    key = path[0]
    if key == "by_source":
        return {"loss": tolerance.mean_bits, "n": None, "m": None}.get(path[-1], tolerance.bound_bits)
    if key in ("topk_errors", "topk_bounds"):
        return tolerance.topk_mean
    if key in ("empirical_bpd", "val_loss_bits", "val_loss_unquantized_bits", "test_loss_bits"):
        return tolerance.mean_bits
    is_bound = key.startswith("bound") and key not in ("bound_inequality", "bound_strict_absent")
    return tolerance.bound_bits if is_bound else None


def _leaves(record: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value with its path; an empty table is a value, so that it does not vanish."""
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def environment_facts(claimed: Mapping[str, Any]) -> dict[str, Any]:
    """What a claim says of machines, by dotted key."""
    return {".".join(path): value for path, value in _leaves(claimed) if path[0] in ENVIRONMENT_KEYS}


def loss_checks(stored: Mapping[str, Any], own: Mapping[str, np.ndarray], tolerance: Tolerance) -> list[Check]:
    """The arrays of losses.npz against the verifier's: names, shapes, documents, and the largest difference of each.

    ln P is compared per target, in bits. `own` lacks the val losses before quantization where there is no checkpoint.
    """
    names = {*own, "val_losses_unquantized_bits"}
    checks = [Check("arrays of losses.npz", sorted(names), sorted(stored.keys() - {"provenance"}))]
    if not checks[0].agrees:
        return checks
    exact = {"indices": "scored documents", "target_counts": "targets of the scored documents"}
    if "source_documents" in own:
        exact["source_documents"] = "documents of the drawn sources"
    for name, title in exact.items():
        checks.append(Check(title, True, bool(np.array_equal(stored[name], own[name]))))
    scale = np.log(2.0) * np.maximum(own["target_counts"], 1)
    for name in sorted(own.keys() - exact.keys()):
        given, computed = stored[name], own[name].astype(np.float64)
        if given.shape != computed.shape or given.dtype != np.float64:
            found, wanted = (f"{values.dtype} {values.shape}" for values in (given, computed))
            checks.append(Check(f"type and shape of {name}", found, wanted))
            continue
        difference = np.abs(given - computed) / (scale if name == "log_p_nats" else 1.0)
        limit = tolerance.topk_document if name == "topk_errors" else tolerance.document_bits
        largest = float(np.max(difference, initial=0.0)) if np.isfinite(given).all() else float("inf")
        checks.append(Check(f"largest difference in {name}", 0.0, largest, limit))
    return checks
