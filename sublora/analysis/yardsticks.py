"""The trivial models and the frozen base beside the networks: one table, and in words what the network adds."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sublora import config
from sublora.analysis.arms import best_of_all
from sublora.analysis.runs_table import is_anchored
from sublora.bounds.paired import Comparison, Verdict, compare, holm, p_value, paired_differences
from sublora.bounds.smoothing import LossRange
from sublora.system.archives import read_npz
from sublora.system.errors import UserError
from sublora.system.names import LOSSES_NAME
from sublora.yardsticks.record import BIGRAM, FIX, FROZEN_BASE, GUESSING, ORDER3, UNIGRAM, Row, read_yardsticks

LABELS = {
    GUESSING: "guessing",
    UNIGRAM: "the unigram",
    BIGRAM: "the bigram",
    ORDER3: "the order-3 model",
    FROZEN_BASE: "the frozen base",
}
DESCRIPTIONS = {
    GUESSING: "uniform over the vocabulary: log2 V",
    UNIGRAM: "token frequencies, sent as a message",
    BIGRAM: "frequencies of token pairs, pruned and sent as a message",
    ORDER3: "adaptive model of order 3, reset for every document: nothing learned beforehand",
    FROZEN_BASE: "the base without any adaptation",
}
BEST_RUN, BEST_RUN_ALONE, BEST_RUN_HELD_OUT = "best_run", "best_run_alone", "best_run_held_out"
GAIN = "certified_gain_bits"
"""Column of the runs table and of the table of yardsticks."""

Outcome = Literal["better", "worse", "not decided"]
SMALLER: Verdict = "smaller"
LARGER: Verdict = "larger"
NOT_DECIDED: Verdict = "not decided"
OUTCOMES: dict[Verdict, Outcome] = {SMALLER: "better", LARGER: "worse", NOT_DECIDED: "not decided"}
"""What a difference of losses says of the network."""
ROW_LABELS = LABELS | {
    BEST_RUN: "the best network",
    "best_run_alone": "the same, named beforehand",
    "best_run_held_out": "the same, held-out bound",
}
NONE = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """One row of yardsticks.json; losses and the bound in bits per token."""

    name: str
    test_loss_bits: float
    scored_loss_bits: float
    """Mean loss on the training documents that the bound starts from."""
    bound_bits: float
    message_bits: float
    smoothing: str | None
    """None where there is nothing to smooth."""
    n: int
    m: int | None
    """Documents scored; None where no loss is estimated."""
    loss_range: LossRange
    test_losses_U: NDArray[np.float64]
    """Losses of the test units, bits per token; empty where all are alike."""

    @property
    def label(self) -> str:
        """How a sentence calls the model."""
        return LABELS[self.name]


@dataclasses.dataclass(frozen=True)
class YardstickVerdict:
    """What the best network's test losses, paired with those of one yardstick, show about new units."""

    yardstick: Yardstick
    comparison: Comparison
    """Network minus yardstick, bits per token. Its interval holds together with those of all other yardsticks."""
    verdict: Verdict
    """By Holm's procedure, which decides more than the intervals do."""

    @property
    def outcome(self) -> Outcome:
        """The verdict in words."""
        return OUTCOMES[self.verdict]

    @property
    def sentence(self) -> str:
        """What is shown, with its number."""
        label, found = self.yardstick.label, self.comparison
        if self.verdict == NOT_DECIDED:
            more = found.examples_to_decide
            needed = "" if more is None else f"; about {more:,} test units would decide"
            return (
                f"Not decided against {label}: the difference of the losses lies between {found.low:+.3f} and "
                f"{found.high:+.3f} bits per token{needed}."
            )
        if found.verdict != self.verdict:
            return f"The network is {self.outcome} than {label}; by how much at least is not shown."
        by = min(abs(found.low), abs(found.high))
        return f"The network is {self.outcome} than {label} by at least {_bits(by)}."


def load_yardsticks(path: Path | str, runs: pd.DataFrame, settings: config.Settings | None = None) -> list[Yardstick]:
    """The yardsticks of the runs' dataset and base: the trivial models, then the frozen base.

    settings: those that the runs were made with, to compare those of the yardsticks with them.

    UserError if the file is missing, damaged, of another dataset, another base or other settings, or lacks a model.
    """
    found = read_yardsticks(Path(path), runs["data_hash"].iloc[0])
    # Of a random base, which each seed draws anew, the yardsticks are about one.
    if found.base_sha256 not in set(runs["base_sha256"]):
        raise UserError(
            f"{path}: the frozen base is {found.base_sha256[:12]}..., the runs adapt "
            f"{runs['base_sha256'].iloc[0][:12]}...; {FIX}"
        )
    if settings is not None:
        wanted = config.stage_settings(settings, "yardsticks")
        if (difference := config.first_difference(found.settings, wanted)) is not None:
            raise UserError(f"{path}: made with other settings than those in force ({difference}); {FIX}")
    rows = found.rows
    if rows.keys() != LABELS.keys():
        raise UserError(
            f"{path}: holds the models {', '.join(sorted(rows))}, expected {', '.join(sorted(LABELS))}; {FIX}"
        )
    return [_yardstick(name, rows[name]) for name in LABELS]


def _yardstick(name: str, row: Row) -> Yardstick:
    return Yardstick(
        name=name,
        test_loss_bits=row.test_loss_bits,
        scored_loss_bits=row.empirical_loss_bits,
        bound_bits=row.bound_bits,
        message_bits=row.code_bits,
        smoothing=row.smoothing,
        n=row.n,
        m=row.m,
        loss_range=LossRange(*row.loss_range_bits),
        test_losses_U=np.array(row.test_losses_bits),
    )


def load_test_losses(paths: Iterable[Path | str], runs: pd.DataFrame) -> NDArray[np.float64]:
    """Return the best run's losses of test units, bits per token, float64 (units,), from its losses.npz among `paths`.

    UserError if it is not there, damaged, or of another scoring than the table of runs.
    """
    best = best_of_all(runs)
    fix = "run the workflow again"
    path = next((path for path in map(Path, paths) if path.parent.name == best["name"]), None)
    if path is None:
        raise UserError(f"{LOSSES_NAME} of run {best['name']} is not among the files given; {fix}")
    losses_U = read_npz(path, missing="no such file", fix=fix).get("test_losses_bits")
    if losses_U is None or not math.isclose(losses_U.mean(), best["test_loss_bits"], abs_tol=1e-9):
        raise UserError(f"{path}: not the losses behind run {best['name']} of the table of runs; {fix}")
    return losses_U


def yardstick_table(
    runs: pd.DataFrame, yardsticks: Sequence[Yardstick], test_losses_U: NDArray[np.float64]
) -> pd.DataFrame:
    """One row per model: the yardsticks, then the best run of all with its bounds, the held-out one last.

    Columns model, description, test_loss_bits and bound_bits (bits per token), message_bits (C), smoothing, n and m;
    network_is, what is shown of the best network beside a yardstick (`verdicts`), and the ends of the difference of
    their mean losses on new units, network_minus_low and network_minus_high (bits per token); for anchored runs also
    certified_gain_bits, what a row's network gains at least over the frozen base, in bits per token. A cell is empty
    where there is no such thing.
    """
    return _table(runs, verdicts(runs, test_losses_U, yardsticks))


def _table(runs: pd.DataFrame, found: Sequence[YardstickVerdict]) -> pd.DataFrame:
    """Return the table of `yardstick_table` from what is shown beside each yardstick."""
    rows = [
        {
            "model": each.yardstick.name,
            "description": _description(each.yardstick.name, runs),
            "test_loss_bits": each.yardstick.test_loss_bits,
            "bound_bits": each.yardstick.bound_bits,
            "message_bits": each.yardstick.message_bits,
            "smoothing": each.yardstick.smoothing,
            "n": each.yardstick.n,
            "m": each.yardstick.m,
            "network_is": each.outcome,
            "network_minus_low": each.comparison.low,
            "network_minus_high": each.comparison.high,
        }
        for each in found
    ]
    best = best_of_all(runs)
    units = {"n": best["n_units"], "m": best["m_units"]}
    held_out = {"n": best["test_units"], "m": best["test_units"]}
    common = {"test_loss_bits": best["test_loss_bits"], "smoothing": best["smoothing"]}
    pays = f"run {best['name']}, the best of {best['sweep_size']}; its bound pays for choosing it"
    for model, description, bound, message_bits, counts in (
        (BEST_RUN, pays, "bound_all_runs", best["code_bits"], units),
        (BEST_RUN_ALONE, "the same run, had it been named beforehand", "bound_value", best["code_bits"], units),
        (BEST_RUN_HELD_OUT, "the same run, bounded from test documents", "bound_held_out_all_runs", 0.0, held_out),
    ):
        row = {"model": model, "description": description, "bound_bits": best[bound], "message_bits": message_bits}
        rows.append(row | common | counts)
    columns = list(rows[0])
    if is_anchored(runs):
        columns.append(GAIN)
        of_model = {row["model"]: row for row in rows}
        of_model[BEST_RUN][GAIN] = best["certified_gain_all_runs_bits"]
        of_model[BEST_RUN_ALONE][GAIN] = best[GAIN]
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64", "m": "Int64"})


def _description(name: str, runs: pd.DataFrame) -> str:
    if name == FROZEN_BASE and runs["base_kind"].iloc[0] == "random":
        return f"{DESCRIPTIONS[name]}: the random weights of the first seed"
    if name == FROZEN_BASE and is_anchored(runs):
        return f"{DESCRIPTIONS[name]}, mixed with guessing: its bound is part of the bound of every run"
    return DESCRIPTIONS[name]


def certified_gain_sentence(runs: pd.DataFrame) -> str | None:
    """Return what the best run is certified to gain over the frozen base, in a sentence; None without an anchor."""
    if not is_anchored(runs):
        return None
    best = best_of_all(runs)
    size, gain = best["sweep_size"], best["certified_gain_all_runs_bits"]
    who = f"the best of the {size} networks" if size > 1 else "the network"
    gained = (
        f"adapting gains at least {gain:.3f} bits per token over the base alone"
        if gain > 0.0
        else "no gain of adapting over the base alone is certified"
    )
    return (
        f"With probability {100 * (1 - best['delta']):g} %, on new documents like these: {who}, mixed with its base, "
        f"needs at most {best['bound_all_runs']:.3f} bits per token{', its choice paid for' if size > 1 else ''}; the "
        f"frozen base, mixed with guessing, needs at most {best['anchor_base_bound']:.3f}; {gained}."
    )


def verdicts(
    runs: pd.DataFrame, test_losses_U: NDArray[np.float64], yardsticks: Sequence[Yardstick]
) -> list[YardstickVerdict]:
    """Compare the best run with each yardstick on the same test units.

    delta is divided by the number of runs, since the best was picked, then by the number of yardsticks for the
    intervals (Bonferroni); the verdicts go by Holm's procedure over yardsticks and directions. UserError if a yardstick
    was scored on another number of test units.
    """
    best = best_of_all(runs)
    own_range = LossRange(best["lower_bits"], best["upper_bits"])
    delta = float(best["delta"]) / best["sweep_size"]
    comparisons, p_values = [], []
    for yardstick in yardsticks:
        reference_U, reference_range = _paired_losses(yardstick, len(test_losses_U))
        try:
            pairs = paired_differences(test_losses_U, reference_U, (own_range, reference_range))
            if yardstick.name == FROZEN_BASE and is_anchored(runs):
                # The mixture loses no more than this above its own anchor, on any unit.
                pairs = pairs.at_most(best["anchor_excess_upper"])
        except ValueError as error:
            raise UserError(f"results/yardsticks.json: {yardstick.label}: {error}; run the workflow again") from None
        comparisons.append(compare(pairs, delta / len(yardsticks)))
        p_values += [p_value(pairs), p_value(pairs.reversed())]
    rejected = holm(np.array(p_values)) <= delta
    found = []
    for index, (yardstick, comparison) in enumerate(zip(yardsticks, comparisons, strict=True)):
        is_smaller, is_larger = rejected[2 * index : 2 * index + 2]
        verdict: Verdict = SMALLER if is_smaller else LARGER if is_larger else NOT_DECIDED
        found.append(YardstickVerdict(yardstick, comparison, verdict))
    return found


def _paired_losses(yardstick: Yardstick, units: int) -> tuple[NDArray[np.float64], LossRange]:
    """Return the losses of a yardstick on the test units, and their range; guessing loses the same on each."""
    if yardstick.name == GUESSING:
        return np.full(units, yardstick.test_loss_bits), LossRange(0.0, yardstick.test_loss_bits)
    if len(yardstick.test_losses_U) != units:
        raise UserError(
            f"results/yardsticks.json: {yardstick.label} was scored on {len(yardstick.test_losses_U)} test units, the "
            f"best run on {units}; delete it and run the workflow again"
        )
    return yardstick.test_losses_U, yardstick.loss_range


def _bits(value: float) -> str:
    return f"{value:.3f} bits per token" if value >= 0.0005 else "less than 0.001 bits per token"


def conclusion(found: Sequence[YardstickVerdict], runs: pd.DataFrame) -> str:
    """All verdicts in two or three sentences, the first about the trivial models together."""
    trivial = [verdict for verdict in found if verdict.yardstick.name != FROZEN_BASE]
    best = best_of_all(runs)
    kind = "documents" if best["unit"] == "document" else "units"
    sentences = []
    for verdict, words in ((LARGER, "is worse than"), (NOT_DECIDED, "is not shown to be better than")):
        if members := [each for each in trivial if each.verdict == verdict]:
            sentences.append(f"The network {words} {_names(members)}.")
    if not sentences:
        sentences.append(f"The network learned something: on new {kind} it is better than every trivial model.")
    sentences += [each.sentence for each in found if each.yardstick.name == FROZEN_BASE]
    picked = f", which pays for picking the best of {best['sweep_size']}" if best["sweep_size"] > 1 else ""
    return " ".join(sentences) + (
        f" (From {best['test_units']:,} test {kind}, paired; with probability {100 * (1 - best['delta']):g} % all "
        f"verdicts hold, and with the same probability all differences{picked}.)"
    )


def _names(found: Sequence[YardstickVerdict]) -> str:
    *first, last = (verdict.yardstick.label for verdict in found)
    return f"{', '.join(first)} and {last}" if first else last


def yardstick_section(
    runs: pd.DataFrame, yardsticks: Sequence[Yardstick], test_losses_U: NDArray[np.float64]
) -> dict[str, Any]:
    """Headline in words, one verdict per yardstick, and the table's rows as texts."""
    found = verdicts(runs, test_losses_U, yardsticks)
    return {
        "conclusion": conclusion(found, runs),
        "certified_gain": certified_gain_sentence(runs),
        "verdicts": [
            {"outcome": each.outcome, "good": each.outcome == "better", "sentence": each.sentence} for each in found
        ],
        "rows": [_cells(row) for row in _table(runs, found).to_dict("records")],
    }


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    name = ROW_LABELS[row["model"]]
    return {
        "name": name[0].upper() + name[1:],
        "description": row["description"],
        "best": row["model"] == BEST_RUN,
        "numbers": [
            f"{row['test_loss_bits']:.3f}",
            f"{row['bound_bits']:.3f}",
            f"{row['message_bits']:,.0f}",
            *(NONE if pd.isna(row[key]) else f"{row[key]:,}" for key in ("n", "m")),
        ],
        "smoothing": NONE if pd.isna(row["smoothing"]) else row["smoothing"],
    }
