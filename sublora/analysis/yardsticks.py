"""The trivial models and the frozen base beside the networks: one table, and in words what the network adds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sublora.analysis.arms import best_of_all
from sublora.analysis.runs_table import is_anchored
from sublora.system.errors import UserError
from sublora.yardsticks.record import BIGRAM, FROZEN_BASE, GUESSING, ORDER3, UNIGRAM, Row, read_yardsticks

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

Outcome = Literal["beaten", "smaller certificate", "nothing added"]
BEATEN: Outcome = "beaten"
SMALLER_CERTIFICATE: Outcome = "smaller certificate"
NOTHING_ADDED: Outcome = "nothing added"
OUTCOME_LABELS = {
    "beaten": "beaten",
    "smaller certificate": "certificate smaller",
    "nothing added": "nothing added",
}
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

    @property
    def label(self) -> str:
        """How a sentence calls the model."""
        return LABELS[self.name]


@dataclasses.dataclass(frozen=True)
class YardstickVerdict:
    """What the best network adds over one yardstick."""

    yardstick: Yardstick
    outcome: Outcome
    sentence: str


def load_yardsticks(path: Path | str, runs: pd.DataFrame) -> list[Yardstick]:
    """The yardsticks of the runs' dataset: the trivial models, then the frozen base.

    UserError if the file is missing, damaged, of another dataset than the runs, or lacks a model.
    """
    rows = read_yardsticks(Path(path), runs["data_hash"].iloc[0]).rows
    if rows.keys() != LABELS.keys():
        raise UserError(
            f"{path}: holds the models {', '.join(sorted(rows))}, expected {', '.join(sorted(LABELS))}; "
            "delete it and run the workflow again"
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
    )


def yardstick_table(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> pd.DataFrame:
    """One row per model: the yardsticks, then the best run of all with its bounds, the held-out one last.

    Columns model, description, test_loss_bits and bound_bits (bits per token), message_bits (C), smoothing, n and m;
    for anchored runs also certified_gain_bits, what a row's network gains at least over the frozen base, in bits per
    token; empty where there is no such thing. Of the held-out bound, n and m would be the test documents, whose
    number the runs table does not hold.
    """
    rows = [
        {
            "model": yardstick.name,
            "description": _description(yardstick.name, runs),
            "test_loss_bits": yardstick.test_loss_bits,
            "bound_bits": yardstick.bound_bits,
            "message_bits": yardstick.message_bits,
            "smoothing": yardstick.smoothing,
            "n": yardstick.n,
            "m": yardstick.m,
        }
        for yardstick in yardsticks
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


def outcome_against(bound_all_runs_bits: float, yardstick: Yardstick) -> Outcome:
    """What the best run's bound shows against a yardstick; both in bits per token, and equal is not below.

    Below the yardstick's mean loss on test documents the network is shown to predict better. Below its bound alone,
    it may only be the cheaper model to certify.
    """
    if bound_all_runs_bits < yardstick.test_loss_bits:
        return BEATEN
    return SMALLER_CERTIFICATE if bound_all_runs_bits < yardstick.bound_bits else NOTHING_ADDED


def verdicts(bound_all_runs_bits: float, yardsticks: Sequence[Yardstick]) -> list[YardstickVerdict]:
    """What the best run's bound (bits per token) shows against each yardstick, in a sentence each."""
    found = []
    for yardstick in yardsticks:
        outcome = outcome_against(bound_all_runs_bits, yardstick)
        found.append(YardstickVerdict(yardstick, outcome, _sentence(bound_all_runs_bits, yardstick, outcome)))
    return found


def _sentence(bound: float, yardstick: Yardstick, outcome: Outcome) -> str:
    label, adapting = yardstick.label, yardstick.name == FROZEN_BASE
    if outcome == BEATEN:
        subject = "Adapting" if adapting else "The network"
        return (
            f"{subject} beats {label}: the bound, {bound:.3f}, lies {_gap(bound, yardstick.test_loss_bits)} below the "
            f"loss of {label} on test documents, {yardstick.test_loss_bits:.3f}."
        )
    if outcome == SMALLER_CERTIFICATE:
        subject = "After adapting" if adapting else f"Against {label}"
        return (
            f"{subject}, its certificate is smaller: the bound, {bound:.3f}, lies "
            f"{_gap(bound, yardstick.bound_bits)} below that of {label}, {yardstick.bound_bits:.3f}, but not below the "
            f"loss of {label} on test documents, {yardstick.test_loss_bits:.3f}."
        )
    subject = "Adapting" if adapting else "The network"
    where = "equals" if bound == yardstick.bound_bits else f"lies {_gap(bound, yardstick.bound_bits)} above"
    return (
        f"{subject} adds nothing over {label}: the bound, {bound:.3f}, {where} that of {label}, "
        f"{yardstick.bound_bits:.3f}."
    )


def _gap(first: float, second: float) -> str:
    gap = abs(first - second)
    return f"{gap:.3f} bits per token" if gap >= 0.0005 else "less than 0.001 bits per token"


def conclusion(found: Sequence[YardstickVerdict]) -> str:
    """All verdicts in two or three sentences, the first about the trivial models together."""
    trivial = [verdict for verdict in found if verdict.yardstick.name != FROZEN_BASE]
    nothing = [verdict for verdict in trivial if verdict.outcome == NOTHING_ADDED]
    not_beaten = [verdict for verdict in trivial if verdict.outcome == SMALLER_CERTIFICATE]
    if nothing:
        sentences = [f"The network adds nothing over {_names(nothing)}."]
    elif not_beaten:
        sentences = [
            "All that is shown of the network is that its certificate is smaller than that of every trivial model: its "
            f"bound does not lie below the test loss of {_names(not_beaten)}."
        ]
    else:
        sentences = ["The network learned something: its bound lies below the test loss of every trivial model."]
    base = {
        BEATEN: "Adapting beats the frozen base.",
        SMALLER_CERTIFICATE: "After adapting, its certificate is smaller than that of the frozen base.",
        NOTHING_ADDED: "Adapting adds nothing over the frozen base.",
    }
    return " ".join([*sentences, *(base[each.outcome] for each in found if each.yardstick.name == FROZEN_BASE)])


def _names(found: Sequence[YardstickVerdict]) -> str:
    *first, last = (verdict.yardstick.label for verdict in found)
    return f"{', '.join(first)} and {last}" if first else last


def yardstick_section(runs: pd.DataFrame, yardsticks: Sequence[Yardstick]) -> dict[str, Any]:
    """Headline in words, one verdict per yardstick, and the table's rows as texts."""
    found = verdicts(best_of_all(runs)["bound_all_runs"], yardsticks)
    return {
        "conclusion": conclusion(found),
        "certified_gain": certified_gain_sentence(runs),
        "verdicts": [
            {"outcome": OUTCOME_LABELS[each.outcome], "good": each.outcome == "beaten", "sentence": each.sentence}
            for each in found
        ],
        "rows": [_cells(row) for row in yardstick_table(runs, yardsticks).to_dict("records")],
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
