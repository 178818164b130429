"""Every inequality for a run, and the record of it that bounds.json holds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sublora.bounds.checks import LN2, check_count
from sublora.bounds.inequalities import betting_subsampled, hoeffding_subsampled, kl_inverse_subsampled
from sublora.bounds.selection import loss_range
from sublora.config import RunSpec

RECORD_FORMAT = 1

HEADLINE = "betting_subsampled"
"""The inequality of bound_value, fixed beforehand: taking the smallest of several would cost a union over them."""

OUTSIDE_PAYLOAD = ("arm", "extra")
"""Items of C that the frozen payload does not hold."""

ENVIRONMENT_KEYS = ("seconds", "peak_memory_mib", "versions", "gpu", "commit", "slurm_job_ids")


def all_bounds(
    losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float, delta_sample: float
) -> dict[str, float]:
    """The bound by every inequality that takes m drawn documents, each at confidence 1 - delta on its own.

    Arguments, unit and errors as in `sublora.bounds.inequalities`.
    """
    common = {"lower": lower, "upper": upper, "code_bits": code_bits, "n": n, "delta": delta}
    return {
        "hoeffding_subsampled": hoeffding_subsampled(losses, **common),
        "kl_inverse_subsampled": kl_inverse_subsampled(losses, **common, delta_sample=delta_sample),
        "betting_subsampled": betting_subsampled(losses, **common, delta_sample=delta_sample),
    }


def bound_record(
    *,
    run: RunSpec,
    losses,
    topk_errors_DK,
    top_k: Sequence[int],
    smoothing: float,
    vocab_size: int,
    code_items: Mapping[str, float],
    n_documents: int,
    delta: float,
    delta_sample: float,
    sweep_size: int,
    val_loss_bits: float,
    val_loss_unquantized_bits: float,
    test_loss_bits: float,
    gates: Mapping[str, int],
    gate_sizes: Mapping[str, int],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of bounds.json.

    losses: of the m scored documents at the smoothing in the payload, bits per token, shape (m,);
    topk_errors_DK: share of each document's targets outside the k likeliest tokens, shape (m, len(top_k));
    code_items: bits of C by item, with "arm" and "extra"; sweep_size: number of runs whose arms the message tells
    apart; gates: group to the number of coordinates that are B's, empty without gates; gate_sizes: group to the number
    of coordinates that its gate splits; environment: the keys ENVIRONMENT_KEYS, copied.

    ValueError as in `sublora.bounds.inequalities`, and if shapes, items, gates or keys do not fit together.
    """
    topk_errors_DK = np.asarray(topk_errors_DK, dtype=np.float64)
    _check_fit(np.shape(losses), topk_errors_DK.shape, len(top_k), code_items, gates, gate_sizes, environment)
    check_count("sweep_size", sweep_size)
    lower, upper = loss_range(smoothing, vocab_size)
    code_bits = float(sum(code_items.values()))
    shared = {"code_bits": code_bits, "n": n_documents, "delta": delta, "delta_sample": delta_sample}
    bounds = all_bounds(losses, lower=lower, upper=upper, **shared)
    record = {
        "format": RECORD_FORMAT,
        "run": {"name": run.name, **run.model_dump(), "mode": run.mode, "ratio": run.ratio},
        "bound_value": bounds[HEADLINE],
        "bound_inequality": HEADLINE,
        "bound_hoeffding": bounds["hoeffding_subsampled"],
        "bound_all_runs": _for_the_sweep(losses, sweep_size, lower=lower, upper=upper, **shared),
        "bounds": bounds,
        "empirical_bpd": float(np.mean(losses)),
        "kl_divergence": code_bits * LN2,
        "compressed_size_bits": sum(bits for item, bits in code_items.items() if item not in OUTSIDE_PAYLOAD),
        "code_bits": code_bits,
        "code_items": dict(code_items),
        "smoothing": smoothing,
        "lower_bits": lower,
        "upper_bits": upper,
        "vacuous_bits": math.log2(vocab_size),
        "vocab_size": vocab_size,
        "n_documents": n_documents,
        "m_documents": len(losses),
        "sweep_size": sweep_size,
        "delta": delta,
        "delta_sample": delta_sample,
        "val_loss_bits": _finite("val_loss_bits", val_loss_bits),
        "val_loss_unquantized_bits": _finite("val_loss_unquantized_bits", val_loss_unquantized_bits),
        "test_loss_bits": _finite("test_loss_bits", test_loss_bits),
        "gates": dict(gates),
        "gamma": {group: count / gate_sizes[group] for group, count in gates.items()},
        "topk_errors": {str(k): float(errors.mean()) for k, errors in zip(top_k, topk_errors_DK.T, strict=True)},
        "topk_bounds": {
            str(k): betting_subsampled(errors, lower=0.0, upper=1.0, **shared)
            for k, errors in zip(top_k, topk_errors_DK.T, strict=True)
        },
    }
    return record | {key: environment[key] for key in ENVIRONMENT_KEYS}


def _for_the_sweep(losses, sweep_size: int, *, delta: float, delta_sample: float, **arguments: Any) -> float:
    """The headline bound with delta_sample shared among all runs of the sweep.

    The arm's index in the message pays for all runs where the n documents are concerned; the draws of m, one a run,
    need this union of their own before the best of the runs may be named.
    """
    share = delta_sample / sweep_size
    return betting_subsampled(losses, delta=delta - delta_sample + share, delta_sample=share, **arguments)


def _check_fit(
    losses_shape: tuple[int, ...],
    topk_shape: tuple[int, ...],
    top_k_count: int,
    code_items: Mapping[str, float],
    gates: Mapping[str, int],
    gate_sizes: Mapping[str, int],
    environment: Mapping[str, Any],
) -> None:
    if topk_shape != (*losses_shape, top_k_count):
        raise ValueError(f"top-k errors of shape {topk_shape} for losses of shape {losses_shape} and {top_k_count} k")
    if missing := [item for item in OUTSIDE_PAYLOAD if item not in code_items]:
        raise ValueError(f"code_items lacks {missing}")
    if wrong := {item: bits for item, bits in code_items.items() if not (math.isfinite(bits) and bits >= 0)}:
        raise ValueError(f"code_items must be finite and not negative, found {wrong}")
    if gates.keys() != gate_sizes.keys():
        raise ValueError(f"gates of {list(gates)}, but sizes of {list(gate_sizes)}")
    if wrong := {group: count for group, count in gates.items() if not 0 <= count <= gate_sizes[group]}:
        raise ValueError(f"gates must lie in 0 ... {dict(gate_sizes)}, found {wrong}")
    if set(environment) != set(ENVIRONMENT_KEYS):
        raise ValueError(f"environment must have the keys {ENVIRONMENT_KEYS}, found {tuple(environment)}")


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, found {value}")
    return float(value)
