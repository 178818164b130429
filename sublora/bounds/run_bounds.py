"""Every bound of a run: from its message, its losses and the premises to the record of them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.anchored_record import AnchoredLosses, Charges, anchored_by_source, anchored_record
from sublora.bounds.checks import LN2
from sublora.bounds.premises import RATES, BoundedLoss, Premises, all_bounds, headline_bound, held_out_bound
from sublora.bounds.record import RunBounds, RunFacts
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, Smoothing, with_tolerance

OUTSIDE_PAYLOAD = ("arm", "extra")
"""Items of C that the frozen payload does not hold."""


@dataclasses.dataclass(frozen=True)
class ChargedMessage:
    """What the message chose, as far as the record tells it, and what it cost."""

    smoothing: Smoothing
    """As the payload names it; with an anchor its k is that of the anchored mixture."""
    items: Mapping[str, float]
    """Bits of C by item, with "arm" (the run's place in the sweep) and "extra" (hand tuning on this data)."""
    gates: Mapping[str, int]
    """Group to the number of coordinates that are B's; empty without gates."""
    gate_sizes: Mapping[str, int]
    """Group to the number of coordinates that its gate splits."""

    def __post_init__(self) -> None:
        if missing := [item for item in OUTSIDE_PAYLOAD if item not in self.items]:
            raise ValueError(f"the message's items lack {missing}")
        if wrong := {item: bits for item, bits in self.items.items() if not (math.isfinite(bits) and bits >= 0)}:
            raise ValueError(f"the message's items must be finite and not negative, found {wrong}")
        if self.gates.keys() != self.gate_sizes.keys():
            raise ValueError(f"gates of {list(self.gates)}, but sizes of {list(self.gate_sizes)}")
        if wrong := {group: k for group, k in self.gates.items() if not 0 <= k <= self.gate_sizes[group]}:
            raise ValueError(f"gates must lie in 0 ... {dict(self.gate_sizes)}, found {wrong}")

    @property
    def code_bits(self) -> float:
        """C."""
        return sum(self.items.values())

    @property
    def payload_bits(self) -> float:
        return sum(bits for item, bits in self.items.items() if item not in OUTSIDE_PAYLOAD)


@dataclasses.dataclass(frozen=True)
class SettingsCharge:
    """What naming the settings costs, by a code that its reader has: either reference and bits, or why there are none.

    The code's lengths satisfy Kraft's inequality over all settings, as those of the messages do.
    """

    reference: str | None
    bits: float | None
    reason: str | None

    def __post_init__(self) -> None:
        if (self.bits is None) != (self.reference is None) or (self.bits is None) == (self.reason is None):
            raise ValueError(f"a charge is a reference with its bits, or a reason: {self}")


NOTHING_CHARGED = SettingsCharge(None, None, "the settings were not compared with a reference")
LARGEST_SETTINGS_BITS = 900
"""Beyond it a share of delta_sample, 2^-bits, is hardly a number any more."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredDocuments:
    """The training units behind the bounds: all n of them, or m drawn with replacement. D counts units here."""

    losses_D: NDArray
    """Bits per token, under the message's smoothing; of a group of documents their mean."""
    topk_errors_DK: NDArray
    """Share of each document's targets that are not among the k likeliest tokens; of a group of documents the mean."""
    top_k: tuple[int, ...]
    m_documents: int | None = None
    """Documents of these units, as often as they were drawn; None: each unit is one."""

    def __post_init__(self) -> None:
        if np.shape(self.topk_errors_DK) != (*np.shape(self.losses_D), len(self.top_k)):
            raise ValueError(
                f"top-k errors of shape {np.shape(self.topk_errors_DK)} for losses of shape {np.shape(self.losses_D)} "
                f"and {len(self.top_k)} k"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutLosses:
    """Losses of documents that are not among the n, bits per token under the message's smoothing, shapes (D,)."""

    val_D: NDArray
    val_unquantized_D: NDArray
    """Losses of the network before its w was quantized."""
    test_D: NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredSources:
    """A second draw: m sources of the training documents with replacement, and of each a document."""

    losses_M: NDArray
    """Losses of the drawn documents, bits per token under the message's smoothing."""
    n_sources: int
    """Sources of the training documents."""
    delta_sample: float
    """The part of delta for this draw."""


def strict_bound(
    losses_D: ArrayLike, loss: BoundedLoss, message: ChargedMessage, settings: SettingsCharge
) -> dict[str, Any]:
    """`bound_strict` with what it rests on: the headline bound for whoever does not believe the settings were fixed.

    The settings' bits are part of the message, and each of their 2^bits alternatives has its own draw, so delta_sample
    is divided among all, as for `bound_all_runs`. Population and base are not charged: the bound holds for those that
    the reader named beforehand. None, with the reason, where there is no code for the settings.
    """
    facts: dict[str, Any] = {
        "bound_strict": None,
        "settings_bits": settings.bits,
        "settings_reference": settings.reference,
        "bound_strict_absent": settings.reason,
    }
    if settings.bits is None:
        return facts
    extra_bits = message.items["extra"] + settings.bits
    if extra_bits > LARGEST_SETTINGS_BITS:
        return facts | {"bound_strict_absent": f"naming the settings takes more than {LARGEST_SETTINGS_BITS} bits"}
    loss_range = loss.range_of(message.smoothing)
    alternatives = loss.premises.for_all_alternatives(extra_bits)
    bound = headline_bound(losses_D, loss_range, message.code_bits + settings.bits, alternatives)
    return facts | {"bound_strict": with_tolerance(bound, loss_range)}


def bounds_by_source(
    scored: ScoredSources | None, loss: BoundedLoss, message: ChargedMessage
) -> dict[str, float | int]:
    """The headline bound of a draw, and what it rests on, with sources in place of units; empty without such a draw.

    It holds with probability 1 - delta on its own, for the mean over sources of the mean loss of a source's documents.
    That one document stands for its source only loosens it: the log of a bet's factor is concave in the loss, so its
    mean over a source's documents is at most its value at their mean loss.
    """
    if scored is None:
        return {}
    loss_range, m = loss.range_of(message.smoothing), len(scored.losses_M)
    own = dataclasses.replace(loss.premises, n_units=scored.n_sources, m_units=m, delta_sample=scored.delta_sample)
    alternatives = own.for_all_alternatives(message.items["extra"])
    return {
        "bound": with_tolerance(headline_bound(scored.losses_M, loss_range, message.code_bits, own), loss_range),
        "bound_all_runs": with_tolerance(
            headline_bound(scored.losses_M, loss_range, message.code_bits, alternatives), loss_range
        ),
        "loss": _mean("losses of drawn sources", scored.losses_M),
        "n": scored.n_sources,
        "m": m,
    }


def run_bounds(
    run: RunFacts,
    *,
    message: ChargedMessage,
    scored: ScoredDocuments,
    held_out: HeldOutLosses,
    loss: BoundedLoss,
    settings: SettingsCharge = NOTHING_CHARGED,
    by_source: ScoredSources | None = None,
    anchored: AnchoredLosses | None = None,
) -> RunBounds:
    """Return every bound of a run, with what it follows from.

    With an anchor, the sum of two bounds takes the place of the direct one, which stays as `bound_direct`. Every bound
    on a loss has the allowance for rounding in it (`with_tolerance`). settings: what they cost, for `bound_strict`.
    ValueError as in `sublora.bounds.inequalities`, and where a mean is not finite.
    """
    loss_range, premises, code_bits = loss.range_of(message.smoothing), loss.premises, message.code_bits

    # From the scored units: every inequality, and the headline once more for the best of all alternatives.
    pure_bounds = all_bounds(scored.losses_D, loss_range, code_bits, premises)
    bounds = {name: with_tolerance(bound, loss_range) for name, bound in pure_bounds.items()}
    alternatives = premises.for_all_alternatives(message.items["extra"])
    all_runs = headline_bound(scored.losses_D, loss_range, code_bits, alternatives)
    topk_errors, topk_bounds = _topk(scored, code_bits, premises)

    # From the test units, on which nothing was chosen: naming the best run of the sweep takes a share of delta. What
    # was tried by hand has no share: it must not have been compared on these units.
    of_test, of_test_all_runs = (
        held_out_bound(held_out.test_D, loss_range, delta=share)
        for share in (premises.delta, premises.delta / premises.sweep_size)
    )
    direct = RunBounds(
        run=run,
        bound_value=bounds[premises.headline],
        bound_inequality=premises.headline,
        bound_hoeffding=bounds[premises.hoeffding],
        bound_all_runs=with_tolerance(all_runs, loss_range),
        **strict_bound(scored.losses_D, loss, message, settings),
        bound_held_out=with_tolerance(of_test, loss_range),
        bound_held_out_all_runs=with_tolerance(of_test_all_runs, loss_range),
        bounds=bounds,
        score_tolerance_bits=SCORE_TOLERANCE_BITS,
        by_source=bounds_by_source(by_source, loss, message),
        bound_direct=bounds[premises.headline],
        anchor={},
        empirical_bpd=_mean("losses of scored documents", scored.losses_D),
        kl_divergence=code_bits * LN2,
        compressed_size_bits=message.payload_bits,
        code_bits=code_bits,
        code_items=dict(message.items),
        smoothing=message.smoothing.name,
        lower_bits=loss_range.lower,
        upper_bits=loss_range.upper,
        vacuous_bits=math.log2(loss.vocab_size),
        vocab_size=loss.vocab_size,
        min_targets=loss.min_targets,
        unit=premises.unit,
        n_units=premises.n_units,
        m_units=len(scored.losses_D),
        n_documents=premises.n_units if premises.n_documents is None else premises.n_documents,
        m_documents=len(scored.losses_D) if scored.m_documents is None else scored.m_documents,
        test_units=len(held_out.test_D),
        sweep_size=premises.sweep_size,
        delta=premises.delta,
        delta_sample=premises.delta_sample or 0.0,
        val_loss_bits=_mean("val losses", held_out.val_D),
        val_loss_unquantized_bits=_mean("val losses before quantization", held_out.val_unquantized_D),
        test_loss_bits=_mean("test losses", held_out.test_D),
        gates=dict(message.gates),
        gamma={group: count / message.gate_sizes[group] for group, count in message.gates.items()},
        topk_errors=topk_errors,
        topk_bounds=topk_bounds,
    )
    return direct if anchored is None else _anchored(direct, anchored, message, loss, settings)


def _anchored(
    direct: RunBounds, anchored: AnchoredLosses, message: ChargedMessage, loss: BoundedLoss, settings: SettingsCharge
) -> RunBounds:
    """Put the sum of two bounds in the place of the direct one; a direct bound over sources stays beside it."""
    charges = Charges.of(message.items, loss.premises.sweep_size)
    settings_bits = None if direct.bound_strict is None else settings.bits
    changes = anchored_record(anchored, charges, loss.population, settings_bits)
    by_source = dict(direct.by_source)
    if by_source:
        by_source["bound_direct"] = by_source["bound"]
        by_source |= anchored_by_source(anchored, charges, loss.population)
    return RunBounds(**dict(direct) | changes | {"by_source": by_source})


def _topk(scored: ScoredDocuments, code_bits: float, premises: Premises) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean top-k errors, and the headline bounds on them, by k."""
    errors = {str(k): errors_D for k, errors_D in zip(scored.top_k, np.transpose(scored.topk_errors_DK), strict=True)}
    means = {k: _mean(f"top-{k} errors", errors_D) for k, errors_D in errors.items()}
    return means, {k: headline_bound(errors_D, RATES, code_bits, premises) for k, errors_D in errors.items()}


def _mean(name: str, values: ArrayLike) -> float:
    mean = float(np.mean(np.asarray(values, dtype=np.float64)))
    if not math.isfinite(mean):
        raise ValueError(f"the mean of the {name} must be finite, found {mean}")
    return mean
