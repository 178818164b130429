"""What a certificate states, in one sentence with its premises, for cards and README files.

Numbers are rounded to the safe side: bounds up, gains down.
"""

import math
from typing import Any

from sublora import config
from sublora.system.errors import printable

NOT_STATED = "not stated"
"""What the settings hold where nothing was said on the independence of a pretrained base."""
ELSEWHERE = "see how_checked"
"""Stands in the settings where one statement covers all that is asked about the independence of a base."""


def sentence(record: dict[str, Any], settings: config.Settings) -> str:
    """Return the certified statement.

    record: the content of bounds.json.
    """
    confidence = f"{100 * (1 - record['delta']):g} %"
    if not record["anchor"]:
        return (
            f"On new documents like these, the adapted model (mixed with guessing) needs at most "
            f"{decimals_up(record['bound_value'])} bits per token ({confidence}); guessing needs "
            f"{record['vacuous_bits']:.3f}. {_sizes(record, settings)}"
        )
    bound, base = decimals_up(record["bound_value"]), decimals_up(record["anchor"]["base_bound"])
    gain = record["certified_gain_bits"]
    gains = f"adapting gains at least {decimals_down(gain)}" if gain > 0.0 else "no gain over it is certified"
    return (
        f"On new documents like these, the adapted model (mixed with its base) needs at most {bound} bits per token "
        f"({confidence}); the frozen model at most {base}; {gains}. {_sizes(record, settings)}"
    )


def _sizes(record: dict[str, Any], settings: config.Settings) -> str:
    n = units_in_words(record["n_units"], record["n_documents"], grouped_by(settings))
    return f"n = {n}, message {math.ceil(record['code_bits']):,} bits."


def premises_in_words(settings: config.Settings) -> list[str]:
    """Return what the sentence presupposes, one statement each."""
    unit = grouped_by(settings)
    drawn = "each document" if unit is None else f"all documents of each {unit}"
    return [
        f"The documents are independent draws ({drawn}) from the population that the new ones come from; documents of "
        f"fewer than {settings.data.min_tokens} tokens are not in it.",
        f"The model was fixed without these documents: {_why_fixed(settings)}.",
        "These settings are the only ones that were tried on these documents "
        f"(message.extra_bits: {settings.message.extra_bits:g}).",
    ]


def _why_fixed(settings: config.Settings) -> str:
    if isinstance(settings.base, config.PretrainedBase):
        return independence_in_words(settings)
    return "its weights are random" if settings.base.kind == "random" else "it was trained on documents of its own"


def independence_in_words(settings: config.Settings) -> str:
    """Return why a pretrained base was fixed without the documents, as it was stated."""
    assert isinstance(settings.base, config.PretrainedBase)
    stated = settings.base.independence
    if stated.how_checked == NOT_STATED:
        return NOT_STATED
    parts = [stated.training_cutoff, stated.document_dates, stated.how_checked]
    own = [part for part in parts if part != ELSEWHERE]
    return "; ".join(printable(part).rstrip(".") for part in own)


def grouped_by(settings: config.Settings) -> str | None:
    """Return what documents are grouped by, None if each is a unit."""
    if settings.data.unit == "document":
        return None
    return printable(getattr(settings.data.corpus, "unit_field", None) or "source")


def units_in_words(n_units: int, n_documents: int, unit: str | None) -> str:
    """Return the number of units, as in "812 texts" or "40 values of customer (812 texts)"."""
    texts = f"{n_documents:,} texts"
    return texts if unit is None else f"{n_units:,} values of {unit} ({texts})"


def decimals_up(value: float) -> str:
    """Return an upper bound in three decimals."""
    return f"{math.ceil(1000 * value) / 1000:.3f}"


def decimals_down(value: float) -> str:
    """Return a lower bound in three decimals."""
    return f"{math.floor(1000 * value) / 1000:.3f}"
